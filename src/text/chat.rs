//! Chat templates.

use serde_json::{Value as Json, json};

use super::{Tokenizer, bad_key};
use crate::error::Result;
use crate::jinja::{Dialect, Renderer};

const KEY: &str = "tokenizer.chat_template";

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
        let mut renderer = Renderer::new(Dialect::Chat);
        self.render_chat_with(&mut renderer, messages, add_generation_prompt)
    }

    /// The same by a renderer of chat templates that has its process already, for many conversations.
    pub fn render_chat_with<R: AsRef<str>, C: AsRef<str>>(
        &self,
        renderer: &mut Renderer,
        messages: &[(R, C)],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let Some(source) = &self.chat_template else {
            return Err(bad_key(&self.path, KEY, "a chat template", "none in this model"));
        };
        let message =
            |(role, content): &(R, C)| json!({"role": role.as_ref(), "content": content.as_ref()});
        let token = |id: Option<u32>| id.and_then(|id| self.token(id)).unwrap_or_default();
        let values = json!({
            "messages": messages.iter().map(message).collect::<Vec<Json>>(),
            "add_generation_prompt": add_generation_prompt,
            "bos_token": token(self.bos),
            "eos_token": token(self.main_eos),
            "unk_token": token(self.unk),
            "pad_token": token(self.pad),
            "tools": null,
            "documents": null,
        });
        renderer
            .render(source, &values)?
            .map_err(|found| bad_key(&self.path, KEY, "a template that renders", found))
    }
}
