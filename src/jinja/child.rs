//! The process that renders: a request a line in, a reply a line out, until the input ends.

use std::io::{self, BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::{Value as Json, json};

use super::{MAX_EXTRA_BYTES, MAX_SECONDS, STACK_BYTES, TOO_LONG, python};

/// Instructions of one rendering; a message takes around a hundred.
const FUEL: u64 = 5_000_000;
const RECURSION: usize = 100;
/// Characters of an error.
const MAX_ERROR: usize = 1000;

/// When the rendering that is under way began, in milliseconds from the start of the process; 0 between two.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Renders what the standard input asks for; the exit code.
pub(super) fn serve() -> u8 {
    limit();
    let start = Instant::now();
    let now = move || start.elapsed().as_millis() as u64 + 1;
    let watch = move || loop {
        std::thread::sleep(Duration::from_millis(100));
        let begun = BEGUN.load(Ordering::SeqCst);
        if begun > 0 && now() > begun + 1000 * MAX_SECONDS {
            std::process::exit(TOO_LONG);
        }
    };
    let work = move || {
        let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
        let environments = [environment(false), environment(true)];
        let mut line = Vec::new();
        while input.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            BEGUN.store(now(), Ordering::SeqCst);
            let reply = match reply(&environments, &line) {
                Ok(text) => json!({"text": text}),
                Err(error) => json!({"error": error.chars().take(MAX_ERROR).collect::<String>()}),
            };
            BEGUN.store(0, Ordering::SeqCst);
            if writeln!(output, "{reply}").and_then(|()| output.flush()).is_err() {
                break;
            }
            line.clear();
        }
    };
    let started = std::thread::Builder::new().spawn(watch).is_ok();
    let worker = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work);
    u8::from(!started || worker.is_ok_and(|worker| worker.join().is_err()))
}

#[cfg(unix)]
fn limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let most = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    // Where the system does not know these limits, time and the output's length are what bounds a template.
    let _ = setrlimit(Resource::Data, most(super::MAX_BYTES));
    let _ = setrlimit(Resource::Core, most(0));
}

#[cfg(not(unix))]
fn limit() {}

fn reply(
    environments: &[Result<Environment<'static>, Error>; 2],
    line: &[u8],
) -> Result<String, String> {
    let request: Json = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let chat = request["chat"] == true;
    let environment = environments[usize::from(chat)].as_ref().map_err(Error::to_string)?;
    let source = python::without_generation_marks(request["source"].as_str().unwrap_or_default());
    let template = environment.template_from_str(&source).map_err(|error| error.to_string())?;
    let mut out = Bounded { bytes: Vec::new(), left: 8 * line.len() + MAX_EXTRA_BYTES };
    template
        .render_captured_to(value(&request["values"]), &mut out)
        .map_err(|error| error.to_string())?;
    String::from_utf8(out.bytes).map_err(|error| error.to_string())
}

fn environment(chat: bool) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    if chat {
        // As transformers compiles them: the newline after a block and the indentation before it are not text.
        environment
            .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.set_undefined_behavior(match chat {
        true => UndefinedBehavior::Lenient,
        false => UndefinedBehavior::Strict,
    });
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_debug(false);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("wordcount", python::word_count);
    environment.add_filter("center", python::center);
    environment.add_function("raise_exception", |message: String| {
        Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, message))
    });
    if chat {
        environment.add_function("strftime_now", python::strftime_now);
    }
    Ok(environment)
}

/// JSON as a template sees it.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => Value::from(list.iter().map(value).collect::<Vec<_>>()),
        Json::Object(object) => {
            Value::from_pairs(object.iter().map(|(name, field)| (name.as_str(), value(field))))
        }
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
    }
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
