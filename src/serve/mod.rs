//! A server of models over HTTP: OpenAI's completions and chat completions, and a page to talk with them.
//!
//! Two threads. The caller's has the device: it takes requests from a queue, lets their sequences into a batch as there is room and
//! sends each its text ([`worker`]). The other has connections and no device ([`connection`]): it reads requests ([`request`]), makes
//! tokens of their prompts, and writes answers ([`answer`]) or what is wrong ([`failure`]). Between them is a channel of jobs, and one of
//! pieces of text for each job, whose other end closes when a client goes away.

mod answer;
mod connection;
mod failure;
mod metrics;
mod request;
mod routes;
mod worker;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use futures::future::{Either, select};
use tokio::sync::{Semaphore, oneshot};

pub use request::Defaults;

use self::metrics::Metrics;
use self::routes::{Shared, routes};
use crate::error::{Error, Result};
use crate::graph::Pass;
use crate::model::Ensemble;
use crate::text::Tokenizer;

/// A model that answers requests.
#[derive(Clone)]
pub struct Served<'m> {
    /// What requests call it.
    pub name: String,
    /// The same as it was named to the program.
    pub argument: String,
    /// What makes its logits.
    pub ensemble: Ensemble<'m>,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Tokens of a sequence at most, prompt and answer.
    pub context: usize,
}

/// How a server serves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sequences of a model at a time.
    pub parallel: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// New tokens of an answer at most.
    pub max_tokens: usize,
    /// What a client must know.
    pub token: Option<String>,
    /// Where there is no token: the name that clients call the server by, besides those of the machine itself.
    pub host: String,
    /// What requests do not say.
    pub defaults: Defaults,
}

/// For answers that were cut short to reach their clients.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Serves models until the user wants to stop or the device fails; the error says which. `ready` is called when requests are
/// answered.
pub fn serve(
    listener: TcpListener,
    models: &[Served<'_>],
    pass: Pass<'_>,
    options: Options,
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let system = |during: &str| {
        let during = during.to_string();
        move |error: std::io::Error| Error::Device { during, reason: error.to_string() }
    };
    listener.set_nonblocking(true).map_err(system("opening the port"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(system("starting the server"))?;
    let metrics = Arc::new(Metrics::default());
    let (send, jobs) = channel();
    let places = Arc::new(Semaphore::new(options.queue));
    let parallel = options.parallel;
    let shared = Arc::new(Shared::new(models, options, (send, places), Arc::clone(&metrics)));
    let (stop, stopped) = oneshot::channel::<()>();
    let router = routes(Arc::clone(&shared));
    let serving = move || {
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Err(error) => tracing::warn!("the port cannot be listened to: {error}"),
                Ok(listener) => {
                    let accepting = std::pin::pin!(connection::accept(listener, router));
                    if let Either::Left(_) = select(stopped, accepting).await {
                        let start = Instant::now();
                        loop {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            if !shared.is_answering() || start.elapsed() > LAST_WORDS {
                                break;
                            }
                        }
                    }
                }
            }
        });
        runtime.shutdown_background();
    };
    let thread = std::thread::Builder::new().name("connections".into()).spawn(serving);
    let thread = thread.map_err(system("starting the server"))?;
    let worked = ready().and_then(|()| worker::work(models, pass, (parallel, jobs, &metrics)));
    let _ = stop.send(());
    let _ = thread.join();
    worked
}
