//! What goes wrong with a request, in OpenAI's form: a status code and a JSON object that names the field at fault.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::Error;

/// Seconds after which a client may ask again where the queue was full.
const RETRY_SECONDS: u64 = 1;

/// Why a request has no answer.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    message: String,
    /// The field at fault.
    param: Option<String>,
    code: Option<&'static str>,
}

impl Failure {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// A request that cannot be understood.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field that has another value than it may have.
    pub(super) fn field(name: &str, expected: &str, found: impl std::fmt::Display) -> Self {
        let message = format!("{name}: expected {expected}, found {found}");
        Self { param: Some(name.into()), ..Self::bad(message) }
    }

    /// A field that would change the answer, and that this server does not know.
    pub(super) fn unsupported(name: &str, why: &str) -> Self {
        let message = format!("{name} is not supported: {why}");
        let code = Some("unsupported_parameter");
        Self { param: Some(name.into()), code, ..Self::bad(message) }
    }

    /// A prompt that leaves no room for a token.
    pub(super) fn too_long(name: &str, tokens: usize, context: usize) -> Self {
        let message = format!(
            "{name} has {tokens} tokens; with one token to come the context of {context} tokens has room for {}",
            context - 1
        );
        let code = Some("context_length_exceeded");
        Self { param: Some(name.into()), code, ..Self::bad(message) }
    }

    pub(super) fn unknown_model(name: &str, known: &str) -> Self {
        let message = format!("the model {name:?} is not served; served: {known}");
        let (param, code) = (Some("model".into()), Some("model_not_found"));
        Self { param, code, ..Self::new(StatusCode::NOT_FOUND, message) }
    }

    pub(super) fn no_route(method: &str, path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {method} {path}"))
    }

    pub(super) fn wrong_method(method: &str, path: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}"))
    }

    pub(super) fn wrong_token() -> Self {
        let message = "expected the server's token: Authorization: Bearer TOKEN";
        let code = Some("invalid_api_key");
        Self { code, ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    pub(super) fn foreign(what: &str, found: &str) -> Self {
        let message = format!("{what}: expected this machine, found {found:?}");
        Self::new(StatusCode::FORBIDDEN, message)
    }

    pub(super) fn too_large(most: usize) -> Self {
        let message = format!("the body has more than {most} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    pub(super) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")
    }

    pub(super) fn queue_full(waiting: usize) -> Self {
        let message = format!("{waiting} requests are waiting, as many as may");
        let code = Some("queue_full");
        Self { code, ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping")
    }

    /// What happened to a sequence. Of what is no mistake of the request, a client is told no more than the kind.
    pub(super) fn of(error: &Error) -> Self {
        match error {
            Error::Argument { argument, expected, found } => {
                // Of a flag's name, the field's.
                let name = argument.trim_start_matches('-').replace('-', "_");
                Self::field(&name, expected, found)
            }
            Error::Interrupted => Self::stopping(),
            Error::OutOfMemory { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "the device is out of memory")
            }
            Error::NotFinite { .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the model's logits are not finite; the server's log says where that began",
            ),
            _ => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the server failed; its log says at what",
            ),
        }
    }

    pub(super) fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = super::answer::json_response(self.status, &self.json());
        let headers = response.headers_mut();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
