//! `lopper serve`: models over HTTP.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::Global;
use super::ensemble::EnsembleArguments;
use super::generate::sampling::SamplingArguments;
use super::output::Output;
use super::session::{
    CacheArguments, compute, load_model, open_device, open_language_model, put_adapter,
    read_adapter,
};
use crate::error::{Error, Result};
use crate::model::{Ensemble, Pass, Weights, check_cache};
use crate::serve::{Defaults, Options, Served, serve};

/// Tokens of a sequence at most where nobody says and the model takes more: every sequence has room for all of them from the start.
const CONTEXT: usize = 4096;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Paths: /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics, and / for the page. \
    How tokens are chosen is for requests that do not say; theirs are named as in OpenAI's interface, with top_k, min_p and \
    repetition_penalty besides."
)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// Serve this model too: requests pick by name, the page shows both side by side
    #[arg(long, value_name = "MODEL")]
    compare: Option<String>,
    /// With the adapter in this folder beside the model's layers, as PEFT and `lopper tune` write it
    #[arg(long, value_name = "FOLDER")]
    lora: Option<PathBuf>,
    /// Listen at this address; one that other machines reach needs a token
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Listen at this port; 0: at any that is free, which is said
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// What clients must send as `Authorization: Bearer TOKEN`; without the flag, LOPPER_TOKEN, which other users of the machine
    /// do not see
    #[arg(long)]
    token: Option<String>,
    /// Continue so many sequences of a model at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// Let so many requests wait; further ones are told to come again (429)
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    queue: u16,
    /// Tokens of a sequence at most, prompt and answer; without it the model's context, at most 4096
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    ctx: Option<u32>,
    /// New tokens of an answer at most, whatever a request asks for; without it, as many as the context has room for
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    #[command(flatten)]
    cache: CacheArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    ensemble: EnsembleArguments,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let defaults = Defaults {
        sampling: arguments.sampling.sampling(global, output)?,
        seeded: global.seed.is_some(),
        stops: arguments.sampling.stops()?,
    };
    let token = token(arguments)?;
    // Before a model is loaded, which takes longer.
    let (listener, address) = listen(arguments, token.is_some())?;
    let checkpoint = open_language_model("MODEL", &arguments.model, output)?;
    let adapter = read_adapter(arguments.lora.as_deref(), &checkpoint, false)?;
    let tokenizer = checkpoint.tokenizer()?;
    let further = arguments.ensemble.open(&tokenizer, output)?;
    let other = arguments.compare.as_deref();
    let other = other.map(|name| open_language_model("--compare", name, output)).transpose()?;
    for model in [Some(&checkpoint), other.as_ref()].into_iter().flatten() {
        let why = "sequences that grow side by side are one text each";
        model.config().without_encoder("lopper serve", why)?;
    }
    let context = further.context(checkpoint.config().max_positions);
    let context = of_context(arguments, "the model", context)?;
    let device = open_device(global, output)?;
    let compute = compute(global, &device)?.with_cache(arguments.cache.cache_type);
    check_cache(checkpoint.config(), compute)?;
    let parallel = usize::from(arguments.parallel);
    let tokens = [1, parallel];
    let mut model = load_model(global, &device, &checkpoint, compute, &tokens, output)?;
    put_adapter(&device, &mut model, &checkpoint, adapter.as_ref())?;
    let others = further.load(global, &device, (&checkpoint, compute), output)?;
    let other = match &other {
        None => None,
        Some(checkpoint) => {
            check_cache(checkpoint.config(), compute)?;
            let context = of_context(arguments, "--compare", checkpoint.config().max_positions)?;
            let tokenizer = checkpoint.tokenizer()?;
            let model = load_model(global, &device, checkpoint, compute, &tokens, output)?;
            Some((model, tokenizer, context))
        }
    };
    let [name, other_name] = names(&arguments.model, arguments.compare.as_deref());
    let argument = arguments.model.clone();
    let (ensemble, tokenizer) = (others.with(&model), Arc::new(tokenizer));
    let mut models = vec![Served { name, argument, ensemble, tokenizer, context }];
    if let Some((model, tokenizer, context)) = &other {
        models.push(Served {
            name: other_name,
            argument: arguments.compare.clone().unwrap_or_default(),
            ensemble: Ensemble::from(model),
            tokenizer: Arc::new(tokenizer.clone()),
            context: *context,
        });
    }
    let options = Options {
        parallel,
        queue: arguments.queue.into(),
        max_tokens: arguments.max_tokens.map_or(usize::MAX, |most| most as usize),
        token,
        host: arguments.host.clone(),
        defaults,
    };
    let url = format!("http://{address}");
    let served: Vec<_> = models
        .iter()
        .map(|m| json!({"id": m.name, "model": m.argument, "context": m.context}))
        .collect();
    let report = json!({
        "schema": 1, "url": url, "port": address.port(), "models": served, "device": device.name(),
        "cache_type": compute.cache_type().name, "ensemble": arguments.ensemble.json(), "parallel": parallel,
    });
    serve(listener, &models, Pass { device: &device, compute }, options, || {
        output.end_progress();
        output.json(&report)?;
        output.line(format!("listening on {url}"));
        output.note("Ctrl-C ends");
        Ok(())
    })
}

/// The token that clients must know, if there is one.
fn token(arguments: &Arguments) -> Result<Option<String>> {
    let of_environment = || std::env::var("LOPPER_TOKEN").ok().filter(|token| !token.is_empty());
    let token = arguments.token.clone().or_else(of_environment);
    match &token {
        // What a header can hold.
        Some(text) if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(Error::Argument {
                argument: "--token".into(),
                expected: "printable ASCII without spaces".into(),
                found: if text.is_empty() { "nothing" } else { "something else" }.into(),
            })
        }
        _ => Ok(token),
    }
}

/// Listens where the flags say; others than this machine only reach it with a token.
fn listen(arguments: &Arguments, has_token: bool) -> Result<(TcpListener, SocketAddr)> {
    let wrong = |argument: &str, expected: &str, found: String| Error::Argument {
        argument: argument.into(),
        expected: expected.into(),
        found,
    };
    let Arguments { host, port, .. } = arguments;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let expected = "an address of this machine, or a name of one";
    let addresses = (bare, *port).to_socket_addrs();
    let addresses: Vec<SocketAddr> = match addresses {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Err(wrong("--host", expected, format!("{host}: {error}"))),
    };
    if !has_token && !addresses.iter().all(|address| address.ip().is_loopback()) {
        let expected =
            "a token (--token or LOPPER_TOKEN) where other machines can reach the server";
        return Err(wrong("--host", expected, format!("{host} and no token")));
    }
    let listener = TcpListener::bind(&addresses[..]).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            wrong("--port", "a port that is free", format!("{port}, which is in use"))
        }
        std::io::ErrorKind::PermissionDenied => {
            wrong("--port", "a port that this user may have", port.to_string())
        }
        _ => wrong("--host", expected, format!("{host}: {error}")),
    })?;
    let address = listener.local_addr();
    let address = address.map_err(|error| wrong("--host", expected, format!("{host}: {error}")))?;
    Ok((listener, address))
}

/// Tokens of a sequence at most, of a model that takes so many.
fn of_context(arguments: &Arguments, what: &str, most: usize) -> Result<usize> {
    match arguments.ctx.map(|ctx| ctx as usize) {
        None => Ok(most.min(CONTEXT)),
        Some(ctx) if ctx <= most => Ok(ctx),
        Some(ctx) => Err(Error::Argument {
            argument: "--ctx".into(),
            expected: format!("at most {most}, the context of {what}"),
            found: ctx.to_string(),
        }),
    }
}

/// What requests call a model and another one: the last part of what they were called here, unless that is one for both.
fn names(model: &str, other: Option<&str>) -> [String; 2] {
    let short = |name: &str| {
        let name = name.rsplit_once(':').map_or(name, |(_, name)| name);
        let path = Path::new(name);
        let path = match path.extension() {
            Some(end) if end.eq_ignore_ascii_case("gguf") => path.with_extension(""),
            _ => path.to_path_buf(),
        };
        path.file_name().map_or(name.to_string(), |name| name.to_string_lossy().into_owned())
    };
    let other = other.unwrap_or_default();
    match (short(model), short(other)) {
        (one, two) if one == two && model == other => [one, format!("{two}-2")],
        (one, two) if one == two => [model.into(), other.into()],
        names => names.into(),
    }
}
