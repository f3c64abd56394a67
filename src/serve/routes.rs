//! What the server answers to which path.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::channel;

use super::answer::{Head, json_response, streamed, whole};
use super::failure::Failure;
use super::metrics::Metrics;
use super::request::{Form, Input, Request as Asked};
use super::worker::Job;
use super::{Options, Served};
use crate::error::Error;
use crate::jinja::{Dialect, Renderer};
use crate::text::Tokenizer;

/// Bytes of a request's body at most.
const MAX_BODY: usize = 4 << 20;
/// Bytes of a larger one that are read and thrown away, so that its client hears that it is too large.
const MAX_DRAINED: usize = 64 << 20;
/// For a body to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// The page.
const PAGE: &str = include_str!("../../assets/html/serve.html");
/// The page's own style and script, and this server; nothing else.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
     img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What every request is answered with.
pub(super) struct Shared {
    models: Vec<Model>,
    options: Options,
    /// The hash of the token that clients must know.
    token: Option<[u8; 32]>,
    jobs: Sender<Job>,
    /// Places in the queue.
    places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    /// What chat templates are rendered by.
    renderer: Mutex<Renderer>,
    /// Requests so far.
    count: AtomicU64,
    /// Requests that are being answered.
    answering: AtomicUsize,
    /// Seconds since 1970.
    started: u64,
}

/// A model as requests see it.
struct Model {
    name: String,
    argument: String,
    tokenizer: Arc<Tokenizer>,
    context: usize,
    /// Tokens that it has.
    columns: usize,
}

impl Shared {
    pub(super) fn new(
        models: &[Served<'_>],
        options: Options,
        (jobs, places): (Sender<Job>, Arc<Semaphore>),
        metrics: Arc<Metrics>,
    ) -> Self {
        let model = |served: &Served<'_>| Model {
            name: served.name.clone(),
            argument: served.argument.clone(),
            tokenizer: Arc::clone(&served.tokenizer),
            context: served.context,
            columns: served.ensemble.columns(),
        };
        let token = options.token.as_ref().map(|token| Sha256::digest(token).into());
        Self {
            models: models.iter().map(model).collect(),
            options,
            token,
            jobs,
            places,
            metrics,
            renderer: Mutex::new(Renderer::new(Dialect::Chat)),
            count: AtomicU64::new(0),
            answering: AtomicUsize::new(0),
            started: seconds(),
        }
    }

    /// Whether somebody is being answered.
    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::SeqCst) > 0
    }

    /// The model that a request names.
    fn find(&self, name: Option<&str>) -> Result<usize, Failure> {
        let names = || {
            let names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
            names.join(", ")
        };
        match name {
            None if self.models.len() == 1 => Ok(0),
            None => Err(Failure::field("model", &names(), "nothing")),
            Some(name) => {
                let called = |model: &Model| model.name == name || model.argument == name;
                let found = self.models.iter().position(called);
                found.ok_or_else(|| Failure::unknown_model(name, &names()))
            }
        }
    }

    /// The tokens of what is to be continued, and how many of them there may be: some, and fewer than the context.
    fn prompt(&self, model: usize, input: Input) -> Result<Vec<u32>, Failure> {
        let Model { tokenizer, context, columns, name, .. } = &self.models[model];
        let field = input.field();
        let encode = |text: &str| tokenizer.encode(text, true).map_err(|e| Failure::of(&e));
        let prompt = match input {
            Input::Text(text) => encode(&text)?,
            Input::Tokens(tokens) => tokens,
            Input::Messages(_) if tokenizer.chat_template.is_none() => {
                let message = format!(
                    "the model {name} has no chat template; /v1/completions takes a prompt"
                );
                return Err(Failure::bad(message));
            }
            Input::Messages(messages) => {
                let mut renderer = self.renderer.lock().unwrap_or_else(PoisonError::into_inner);
                let rendered = tokenizer.render_chat_with(&mut renderer, &messages, true);
                drop(renderer);
                encode(&rendered.map_err(|error| match error {
                    // Of a template it is most often the conversation that it does not take.
                    Error::Key { found, .. } => {
                        Failure::field("messages", "what the model's chat template takes", found)
                    }
                    error => Failure::of(&error),
                })?)?
            }
        };
        if let Some(token) = prompt.iter().find(|token| **token as usize >= *columns) {
            return Err(Failure::field(field, &format!("tokens below {columns}"), token));
        }
        match prompt.len() {
            0 => Err(Failure::field(field, "one token or more", "none")),
            tokens if tokens >= *context => Err(Failure::too_long(field, tokens, *context)),
            _ => Ok(prompt),
        }
    }
}

/// The paths, with what every request goes through first.
pub(super) fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completion))
        .route("/v1/chat/completions", post(chat))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

/// Lets in who may, and counts responses.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let path = known_path(request.uri().path());
    let allowed = match &shared.token {
        Some(token) if path != "/" && path != "/health" => {
            knows(token, request.headers()).then_some(()).ok_or_else(Failure::wrong_token)
        }
        Some(_) => Ok(()),
        None => is_local(request.headers(), &shared.options.host),
    };
    let mut response = match allowed {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    shared.metrics.responded(path, response.status().as_u16());
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The path as metrics name it: of others there is no end.
fn known_path(path: &str) -> &'static str {
    const KNOWN: [&str; 6] =
        ["/", "/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions"];
    let known = KNOWN.into_iter().find(|known| *known == path);
    known.unwrap_or(if path.starts_with("/v1/models/") { "/v1/models" } else { "other" })
}

/// Whether a request has the token. Hashes are compared, and all of them: how long it takes says nothing about the token.
fn knows(token: &[u8; 32], headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let given = given.and_then(|value| {
        let (scheme, token) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
    });
    let hash: [u8; 32] = Sha256::digest(given.unwrap_or_default()).into();
    let differs = token.iter().zip(&hash).fold(0, |differs, (a, b)| differs | (a ^ b));
    given.is_some() && std::hint::black_box(differs) == 0
}

/// A page of somebody else's in a browser here reaches this machine too, by a name of its own or from an origin of its own. Where
/// no token keeps it out, the name must be this machine's, and the origin too.
fn is_local(headers: &HeaderMap, own: &str) -> Result<(), Failure> {
    let text = |name| match headers.get(name) {
        None => Ok(None),
        Some(value) => value.to_str().map(Some).map_err(|_| Failure::foreign("header", "no text")),
    };
    let is_own = |authority: &str| {
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        };
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host.eq_ignore_ascii_case("localhost")
            || host.eq_ignore_ascii_case(own)
            || address.is_ok_and(|address| address.is_loopback())
    };
    if let Some(host) = text(header::HOST)?.filter(|host| !is_own(host)) {
        return Err(Failure::foreign("Host", host));
    }
    let origin = text(header::ORIGIN)?;
    let is_foreign = |origin: &&str| !origin.strip_prefix("http://").is_some_and(is_own);
    match origin.filter(is_foreign) {
        Some(origin) => Err(Failure::foreign("Origin", origin)),
        None => Ok(()),
    }
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE).into_response()
}

async fn health() -> Response {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, shared.metrics.text()).into_response()
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    let models: Vec<Value> = shared.models.iter().map(|model| entry(&shared, model)).collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": models}))
}

async fn model(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    match shared.find(Some(&name)) {
        Ok(index) => json_response(StatusCode::OK, &entry(&shared, &shared.models[index])),
        Err(failure) => failure.into_response(),
    }
}

/// A model as lists have it; beside OpenAI's fields those that the page needs.
fn entry(shared: &Shared, model: &Model) -> Value {
    let most = shared.options.max_tokens.min(model.context - 1);
    json!({
        "id": model.name, "object": "model", "created": shared.started, "owned_by": "lopper",
        "context": model.context, "max_tokens": most, "chat": model.tokenizer.chat_template.is_some(),
    })
}

async fn no_route(method: Method, uri: Uri) -> Response {
    Failure::no_route(method.as_str(), uri.path()).into_response()
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    Failure::wrong_method(method.as_str(), uri.path()).into_response()
}

async fn completion(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    answer(shared, Form::Completion, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    answer(shared, Form::Chat, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(shared: Arc<Shared>, form: Form, request: Request) -> Result<Response, Failure> {
    let body = tokio::time::timeout(BODY_TIME, read_body(request.into_body())).await;
    let body = body.map_err(|_| Failure::too_slow())??;
    let since = Instant::now();
    // Tokens take a while, and a template waits for a process.
    let reading = Arc::clone(&shared);
    let read = tokio::task::spawn_blocking(move || {
        let asked = Asked::parse(&body, form, &reading.options.defaults)?;
        let model = reading.find(asked.model.as_deref())?;
        let Asked { input, count, sampling, seeded, stops, stream, include_usage, .. } = asked;
        let prompt = reading.prompt(model, input)?;
        Ok((model, prompt, (count, sampling, seeded, stops), (stream, include_usage)))
    });
    let (model, prompt, (count, mut sampling, seeded, stops), (stream, include_usage)) =
        read.await.unwrap_or_else(|_| Err(Failure::stopping()))?;

    let number = shared.count.fetch_add(1, Ordering::Relaxed);
    if !seeded {
        sampling.seed = match shared.options.defaults.seeded {
            true => sampling.seed.wrapping_add(number),
            false => fresh_seed(number),
        };
    }
    let (known, prompt_tokens) = (&shared.models[model], prompt.len());
    let most = (known.context - prompt_tokens).min(shared.options.max_tokens);
    let count = count.unwrap_or(most).min(most);
    let queue = shared.options.queue;
    let place = Arc::clone(&shared.places).try_acquire_owned();
    let place = place.map_err(|_| Failure::queue_full(queue))?;
    let (send, pieces) = channel(count + 2);
    let job = Job { model, prompt, count, sampling, stops, pieces: send, since, place };
    shared.jobs.send(job).map_err(|_| Failure::stopping())?;
    let kind = match form {
        Form::Completion => "cmpl",
        Form::Chat => "chatcmpl",
    };
    let id = format!("{kind}-{:x}{number:06x}", shared.started);
    let head = Head { form, id, created: seconds(), model: known.name.clone(), prompt_tokens };
    let answering = Answering::new(&shared);
    Ok(match stream {
        true => streamed(head, include_usage, pieces, answering).await,
        false => whole(&head, pieces).await,
    })
}

/// All of a body, if it is not too large.
async fn read_body(body: Body) -> Result<Vec<u8>, Failure> {
    let (mut stream, mut read, mut length) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(part) = stream.next().await {
        let part: Bytes =
            part.map_err(|error| Failure::bad(format!("the body ended early: {error}")))?;
        length += part.len();
        if length <= MAX_BODY {
            read.extend_from_slice(&part);
        } else if length > MAX_DRAINED {
            break;
        }
    }
    if length > MAX_BODY { Err(Failure::too_large(MAX_BODY)) } else { Ok(read) }
}

/// Counts a request as long as it is here.
struct Answering(Arc<Shared>);

impl Answering {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.answering.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::SeqCst);
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A seed that no request before had, nor one after a restart.
fn fresh_seed(number: u64) -> u64 {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    (nanoseconds as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number)
}
