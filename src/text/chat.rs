//! Chat templates: Jinja, in the dialect that transformers gives them.
//!
//! A template comes with the model and is not trusted: it sees nothing but the messages, and instructions, recursion
//! and output are bounded.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error as JinjaError, ErrorKind, UndefinedBehavior};

use super::{Tokenizer, bad_key, python};
use crate::error::{Error, Result};

const KEY: &str = "tokenizer.chat_template";
/// Instructions of one rendering; a message takes around a hundred.
const FUEL: u64 = 5_000_000;
const RECURSION: usize = 100;
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Bytes of one rendering beyond a small multiple of the messages.
const MAX_EXTRA_BYTES: usize = 1 << 20;

impl Tokenizer {
    /// The prompt text that the chat template makes of messages, each a role and a content.
    ///
    /// The text holds BOS itself where the template puts it; [`Tokenizer::encode`] does not double it. `strftime_now`
    /// always tells 26 July 2024, midnight, the date that Llama's templates assume without a clock: a prompt must not
    /// depend on the day it was made.
    pub fn render_chat<R: AsRef<str>, C: AsRef<str>>(
        &self,
        messages: &[(R, C)],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let refuse = |found: String| bad_key(&self.path, KEY, "a template that renders", found);
        let Some(source) = &self.chat_template else {
            return Err(bad_key(&self.path, KEY, "a chat template", "none in this model"));
        };
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(refuse(format!("{} bytes", source.len())));
        }
        let mut size = 0;
        let mut list = Vec::with_capacity(messages.len());
        for (role, content) in messages {
            let (role, content) = (role.as_ref(), content.as_ref());
            size += role.len() + content.len();
            list.push(minijinja::context! { role => role, content => content });
        }
        let environment = environment().map_err(|e| self.template_error(e))?;
        let template = environment.template_from_str(source).map_err(|e| self.template_error(e))?;
        let token = |id: Option<u32>| id.and_then(|id| self.token(id)).unwrap_or_default();
        let context = minijinja::context! {
            messages => list,
            add_generation_prompt => add_generation_prompt,
            bos_token => token(self.bos),
            eos_token => token(self.main_eos),
            unk_token => token(self.unk),
            pad_token => token(self.pad),
            tools => (),
            documents => (),
        };
        let mut out = Bounded { bytes: Vec::new(), left: 8 * size + MAX_EXTRA_BYTES };
        template.render_captured_to(context, &mut out).map_err(|e| self.template_error(e))?;
        String::from_utf8(out.bytes).map_err(|e| refuse(e.to_string()))
    }

    fn template_error(&self, error: JinjaError) -> Error {
        bad_key(&self.path, KEY, "a template that renders", error)
    }
}

fn environment() -> Result<Environment<'static>, JinjaError> {
    let mut environment = Environment::new();
    // As transformers compiles them: the newline after a block and the indentation before it are not text.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_debug(false);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", python::to_json);
    environment.add_function("raise_exception", |message: String| {
        Err::<Value, _>(JinjaError::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", python::strftime_now);
    Ok(environment)
}

/// Takes so many bytes and then fails, which ends the rendering.
struct Bounded {
    bytes: Vec<u8>,
    left: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self
            .left
            .checked_sub(bytes.len())
            .ok_or_else(|| io::Error::other("the output is too long"))?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
