//! Requests in OpenAI's form. What would change the answer and is not known here is refused by its name.

use serde_json::{Map, Value};

use super::failure::Failure;
use crate::model::Sampling;
use crate::text::StopStrings;

/// Which of the two forms a request and its answer have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A text that goes on.
    Completion,
    /// A conversation.
    Chat,
}

/// What a request that names none is answered with.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// How tokens are chosen. The seed counts only where `seeded`.
    pub sampling: Sampling,
    /// Whether requests without a seed are numbered from the seed above; otherwise they draw anew each time.
    pub seeded: bool,
    /// Where a text ends.
    pub stops: StopStrings,
}

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    /// The model's name; none is the only one's.
    pub(super) model: Option<String>,
    pub(super) input: Input,
    /// New tokens at most.
    pub(super) count: Option<usize>,
    pub(super) sampling: Sampling,
    /// Whether it named a seed.
    pub(super) seeded: bool,
    pub(super) stops: StopStrings,
    pub(super) stream: bool,
    /// Whether a stream ends with how many tokens there were.
    pub(super) include_usage: bool,
}

/// What is to be continued.
#[derive(Debug)]
pub(super) enum Input {
    Text(String),
    Tokens(Vec<u32>),
    /// Roles and contents.
    Messages(Vec<(String, String)>),
}

impl Input {
    /// The field that holds it.
    pub(super) fn field(&self) -> &'static str {
        match self {
            Input::Text(_) | Input::Tokens(_) => "prompt",
            Input::Messages(_) => "messages",
        }
    }
}

/// Stop strings of a request at most.
const MAX_STOPS: usize = 16;
/// New tokens where a completion names no number: OpenAI's.
const COMPLETION_TOKENS: usize = 16;

/// Fields that change nothing in an answer.
const WITHOUT_EFFECT: &[&str] = &[
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];

impl Request {
    /// Reads a body.
    pub(super) fn parse(body: &[u8], form: Form, defaults: &Defaults) -> Result<Self, Failure> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| Failure::bad(format!("the body is not JSON: {error}")))?;
        let Value::Object(map) = value else {
            return Err(Failure::bad(format!("expected a JSON object, found {}", kind(&value))));
        };
        let mut fields = Fields(map);
        let model = fields.text("model")?;
        let input = match form {
            Form::Completion => fields.prompt()?,
            Form::Chat => fields.messages()?,
        };
        let count = fields.count(form)?;
        let seed = fields.seed()?;
        let sampling = fields.sampling(defaults.sampling, seed)?;
        let stops = fields.stops()?.unwrap_or_else(|| defaults.stops.clone());
        let stream = fields.flag("stream")?;
        let include_usage = fields.include_usage(stream)?;
        fields.refuse_rest()?;
        let seeded = seed.is_some();
        Ok(Self { model, input, count, sampling, seeded, stops, stream, include_usage })
    }
}

/// What of an object was not taken yet. Null is as good as nothing.
struct Fields(Map<String, Value>);

impl Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Failure> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Failure::field(name, "a string", kind(&other))),
        }
    }

    fn flag(&mut self, name: &str) -> Result<bool, Failure> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(Failure::field(name, "true or false", kind(&other))),
        }
    }

    fn number(&mut self, name: &str, default: f64) -> Result<f64, Failure> {
        match self.take(name) {
            None => Ok(default),
            Some(value) => {
                value.as_f64().ok_or_else(|| Failure::field(name, "a number", shown(&value)))
            }
        }
    }

    fn whole(&mut self, name: &str) -> Result<Option<usize>, Failure> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let whole = value.as_u64().and_then(|whole| usize::try_from(whole).ok());
        match whole {
            Some(whole) => Ok(Some(whole)),
            None => Err(Failure::field(name, "a whole number, not below 0", shown(&value))),
        }
    }

    fn prompt(&mut self) -> Result<Input, Failure> {
        const EXPECTED: &str = "a string or a list of token ids";
        let Some(mut prompt) = self.take("prompt") else {
            return Err(Failure::field("prompt", EXPECTED, "nothing"));
        };
        // A list of one prompt is that prompt.
        if let Value::Array(list) = &mut prompt {
            let lists_prompts = matches!(list.first(), Some(Value::String(_) | Value::Array(_)));
            match (lists_prompts, list.len()) {
                (true, 1) => prompt = list.remove(0),
                (true, several) => {
                    let found = format!("{several} prompts; send a request for each");
                    return Err(Failure::field("prompt", EXPECTED, found));
                }
                (false, _) => {}
            }
        }
        match prompt {
            Value::String(text) => Ok(Input::Text(text)),
            Value::Array(tokens) => {
                let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
                let ids: Option<Vec<u32>> = tokens.iter().map(token).collect();
                match ids {
                    Some(ids) => Ok(Input::Tokens(ids)),
                    None => Err(Failure::field("prompt", EXPECTED, "another list")),
                }
            }
            other => Err(Failure::field("prompt", EXPECTED, kind(&other))),
        }
    }

    fn messages(&mut self) -> Result<Input, Failure> {
        let list = match self.take("messages") {
            Some(Value::Array(list)) if !list.is_empty() => list,
            other => {
                let found = other.map_or("nothing".into(), |value| shown(&value));
                return Err(Failure::field("messages", "a list of one message or more", found));
            }
        };
        let messages = list.into_iter().enumerate().map(|(index, value)| message(index, value));
        Ok(Input::Messages(messages.collect::<Result<_, _>>()?))
    }

    fn count(&mut self, form: Form) -> Result<Option<usize>, Failure> {
        let old = self.whole("max_tokens")?;
        let (name, count) = match (form, old) {
            (Form::Completion, _) => ("max_tokens", Some(old.unwrap_or(COMPLETION_TOKENS))),
            (Form::Chat, _) => match (self.whole("max_completion_tokens")?, old) {
                (Some(new), Some(old)) if new != old => {
                    let expected = format!("{new}, as max_completion_tokens has it");
                    return Err(Failure::field("max_tokens", &expected, old));
                }
                (Some(new), _) => ("max_completion_tokens", Some(new)),
                (None, old) => ("max_tokens", old),
            },
        };
        match count {
            Some(0) => Err(Failure::field(name, "1 or more", 0)),
            count => Ok(count),
        }
    }

    /// Any integer; one below zero is the number with its bits.
    fn seed(&mut self) -> Result<Option<u64>, Failure> {
        let Some(value) = self.take("seed") else { return Ok(None) };
        let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        match seed {
            Some(seed) => Ok(Some(seed)),
            None => Err(Failure::field("seed", "an integer of 64 bits", shown(&value))),
        }
    }

    fn sampling(&mut self, default: Sampling, seed: Option<u64>) -> Result<Sampling, Failure> {
        let sampling = Sampling {
            temperature: self.number("temperature", default.temperature)?,
            top_k: self.whole("top_k")?.unwrap_or(default.top_k),
            top_p: self.number("top_p", default.top_p)?,
            min_p: self.number("min_p", default.min_p)?,
            repetition_penalty: self.number("repetition_penalty", default.repetition_penalty)?,
            seed: seed.unwrap_or(default.seed),
        };
        match sampling.check() {
            Ok(()) => Ok(sampling),
            Err(error) => Err(Failure::of(&error)),
        }
    }

    fn stops(&mut self) -> Result<Option<StopStrings>, Failure> {
        let list = match self.take("stop") {
            None => return Ok(None),
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
        };
        let expected = format!("a string, or a list of at most {MAX_STOPS}, none of them empty");
        if list.len() > MAX_STOPS {
            return Err(Failure::field("stop", &expected, format!("{} of them", list.len())));
        }
        let mut stops = Vec::with_capacity(list.len());
        for value in list {
            match value {
                Value::String(text) if !text.is_empty() => stops.push(text),
                other => return Err(Failure::field("stop", &expected, shown(&other))),
            }
        }
        Ok(Some(StopStrings::new(&stops)))
    }

    fn include_usage(&mut self, stream: bool) -> Result<bool, Failure> {
        let options = match self.take("stream_options") {
            None => return Ok(false),
            Some(Value::Object(options)) => options,
            Some(other) => return Err(Failure::field("stream_options", "an object", kind(&other))),
        };
        if !stream {
            return Err(Failure::field("stream_options", "it with \"stream\": true", "it alone"));
        }
        let mut options = Fields(options);
        let include_usage = options.flag("include_usage")?;
        // Padding that this server does not add.
        options.0.shift_remove("include_obfuscation");
        match options.0.keys().next() {
            None => Ok(include_usage),
            Some(other) => Err(Failure::unsupported(
                &format!("stream_options.{other}"),
                "it is not known here",
            )),
        }
    }

    /// What is left must be what it is without being said.
    fn refuse_rest(&mut self) -> Result<(), Failure> {
        for (name, value) in &self.0 {
            let why = match name.as_str() {
                _ if value.is_null() || WITHOUT_EFFECT.contains(&name.as_str()) => continue,
                "n" | "best_of" if value.as_u64() == Some(1) => continue,
                "n" | "best_of" => "an answer has one choice; send a request for each",
                "presence_penalty" | "frequency_penalty" if value.as_f64() == Some(0.0) => continue,
                "presence_penalty" | "frequency_penalty" => "repetition_penalty is",
                "echo" | "logprobs" if *value == Value::Bool(false) => continue,
                "tools" | "functions" if value.as_array().is_some_and(Vec::is_empty) => continue,
                "tool_choice" if matches!(value.as_str(), Some("none" | "auto")) => continue,
                "tools" | "functions" | "tool_choice" => "answers are text",
                "logit_bias" if value.as_object().is_some_and(Map::is_empty) => continue,
                "response_format" if value["type"] == "text" => continue,
                "modalities" if *value == serde_json::json!(["text"]) => continue,
                "suffix" if value.as_str() == Some("") => continue,
                _ => "it is not known here and might change the answer",
            };
            return Err(Failure::unsupported(name, why));
        }
        Ok(())
    }
}

/// A message's role and text.
fn message(index: usize, value: Value) -> Result<(String, String), Failure> {
    let place = |name: &str| format!("messages[{index}]{name}");
    let Value::Object(map) = value else {
        return Err(Failure::field(&place(""), "an object", kind(&value)));
    };
    let mut fields = Fields(map);
    let role = match fields.take("role") {
        Some(Value::String(role)) => role,
        _ => return Err(Failure::field(&place(".role"), "a string", "none")),
    };
    let role = match role.as_str() {
        // The newer name of the same.
        "developer" => "system".to_string(),
        "system" | "user" | "assistant" => role,
        _ => {
            let expected = "system, developer, user or assistant";
            return Err(Failure::field(&place(".role"), expected, format!("{role:?}")));
        }
    };
    let expected = "a string, or a list of parts of type text";
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let part = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text"), Some(text)) => Some(text.to_string()),
                _ => None,
            };
            let parts: Option<Vec<String>> = parts.iter().map(part).collect();
            let none = || Failure::field(&place(".content"), expected, "a part of another type");
            parts.ok_or_else(none)?.concat()
        }
        other => {
            let found = other.map_or("nothing", |value| kind(&value));
            return Err(Failure::field(&place(".content"), expected, found));
        }
    };
    // As an answer's message comes back.
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    match fields.0.iter().find(|(_, value)| !empty(value)) {
        None => Ok((role, content)),
        Some((name, _)) => {
            Err(Failure::unsupported(&place(&format!(".{name}")), "a message is a role and a text"))
        }
    }
}

/// What kind of value it is.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value that is short, or its kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        Value::String(text) if text.len() <= 40 => value.to_string(),
        Value::Array(list) if list.is_empty() => "an empty list".into(),
        other => kind(other).into(),
    }
}
