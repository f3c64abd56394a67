//! Answers in OpenAI's form: whole, or as events of a stream (server-sent events) while text arrives.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream::unfold;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use super::failure::Failure;
use super::request::Form;

/// What a sequence's text arrives in.
#[derive(Debug)]
pub(super) enum Piece {
    /// More of it.
    Text(String),
    /// There is no more.
    Done(Done),
    /// There is no more, and this is why.
    Failed(Failure),
}

/// How a sequence ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) end: End,
    /// New tokens.
    pub(super) tokens: usize,
    /// Tokens of the prompt that were known.
    pub(super) reused: usize,
}

/// Why a sequence ended that did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The model ended it, or a stop string.
    Stop,
    /// As many tokens as were asked for, or as there is room for.
    Length,
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            End::Stop => "stop",
            End::Length => "length",
        }
    }
}

/// What every part of an answer says.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) form: Form,
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) prompt_tokens: usize,
}

impl Head {
    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }

    fn usage(&self, done: &Done) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": done.tokens,
            "total_tokens": self.prompt_tokens + done.tokens,
            "prompt_tokens_details": {"cached_tokens": done.reused},
        })
    }

    fn whole(&self, text: &str, done: &Done) -> Value {
        let reason = done.end.name();
        let mut answer = match self.form {
            Form::Completion => self.object(
                "text_completion",
                json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": reason}]),
            ),
            Form::Chat => self.object(
                "chat.completion",
                json!([{
                    "index": 0, "message": {"role": "assistant", "content": text, "refusal": null},
                    "logprobs": null, "finish_reason": reason,
                }]),
            ),
        };
        answer["usage"] = self.usage(done);
        answer
    }

    /// A part of a stream: some text, or the end.
    fn chunk(&self, text: Option<&str>, end: Option<End>) -> Value {
        let reason = end.map(End::name);
        match self.form {
            Form::Completion => self.object(
                "text_completion",
                json!([{
                    "index": 0, "text": text.unwrap_or_default(), "logprobs": null, "finish_reason": reason,
                }]),
            ),
            Form::Chat => {
                let delta = text.map_or(json!({}), |text| json!({"content": text}));
                self.chat_chunk(delta, reason)
            }
        }
    }

    fn chat_chunk(&self, delta: Value, reason: Option<&str>) -> Value {
        let choice =
            json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
        self.object("chat.completion.chunk", choice)
    }
}

/// A response of JSON.
pub(super) fn json_response(status: StatusCode, value: &Value) -> Response {
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (status, json, value.to_string()).into_response()
}

/// Waits for all of an answer.
pub(super) async fn whole(head: &Head, mut pieces: Receiver<Piece>) -> Response {
    let mut text = String::new();
    loop {
        match pieces.recv().await {
            Some(Piece::Text(piece)) => text.push_str(&piece),
            Some(Piece::Done(done)) => {
                return json_response(StatusCode::OK, &head.whole(&text, &done));
            }
            Some(Piece::Failed(failure)) => return failure.into_response(),
            None => return Failure::stopping().into_response(),
        }
    }
}

/// An answer as it arrives; where nothing arrives but a failure, that. `kept` goes when all was taken, or the client is gone.
pub(super) async fn streamed(
    head: Head,
    include_usage: bool,
    mut pieces: Receiver<Piece>,
    kept: impl Send + 'static,
) -> Response {
    let first = match pieces.recv().await {
        Some(Piece::Failed(failure)) => return failure.into_response(),
        None => return Failure::stopping().into_response(),
        Some(piece) => piece,
    };
    let mut opening = String::new();
    let stream = Stream { head, include_usage, pieces };
    if stream.head.form == Form::Chat {
        let role = json!({"role": "assistant", "content": ""});
        opening = stream.event(stream.head.chat_chunk(role, None));
    }
    let first = Some((stream, opening, Some(first), kept));
    let events = unfold(first, |state| async move {
        let (mut stream, mut text, first, kept) = state?;
        let piece = match first {
            Some(piece) => Some(piece),
            None => stream.pieces.recv().await,
        };
        let more = stream.add(piece, &mut text);
        let next = more.then(|| (stream, String::new(), None, kept));
        Some((Ok::<_, Infallible>(Bytes::from(text)), next))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(events)).into_response()
}

struct Stream {
    head: Head,
    include_usage: bool,
    pieces: Receiver<Piece>,
}

impl Stream {
    /// Adds the events of a piece to a text; whether there may be more.
    fn add(&self, piece: Option<Piece>, text: &mut String) -> bool {
        match piece {
            Some(Piece::Text(piece)) => {
                text.push_str(&self.event(self.head.chunk(Some(&piece), None)));
                true
            }
            Some(Piece::Done(done)) => {
                text.push_str(&self.event(self.head.chunk(None, Some(done.end))));
                if self.include_usage {
                    let mut last = self.head.chunk(None, None);
                    last["choices"] = json!([]);
                    last["usage"] = self.head.usage(&done);
                    text.push_str(&event(&last));
                }
                text.push_str("data: [DONE]\n\n");
                false
            }
            Some(Piece::Failed(failure)) => {
                text.push_str(&event(&failure.json()));
                false
            }
            None => {
                text.push_str(&event(&Failure::stopping().json()));
                false
            }
        }
    }

    fn event(&self, mut chunk: Value) -> String {
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        event(&chunk)
    }
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}
