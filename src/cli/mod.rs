//! The command line: arguments and printing, one file per command, a folder where several commands belong together. The
//! only place that prints.

mod bench;
mod calibrate;
mod codebook;
mod compress;
mod devices;
mod embed;
mod ensemble;
mod eval;
mod export;
mod generate;
mod inspect;
mod logits;
mod merge;
mod output;
mod progress;
mod prune;
mod quantize;
mod rewards;
mod scores;
mod serve;
mod session;
mod shell;
mod signals;
mod sweep;
mod synth;
mod tasks;
mod train;
mod transform;
mod trust;
mod upcycle;
mod version;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::disk;
use crate::error::{Error, Result};
use crate::gpu::{Selector, parse_backend};
use crate::interrupt;
use crate::kernels::matmul::Engine;
use bench::tune;
use eval::compare;
use output::Output;
use trust::{mutate, verify};

/// Makes language models small on the GPU you already own.
#[derive(Debug, Parser)]
#[command(name = "lopper", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// Where kernels run. `checked` runs each on the GPU and on the CPU reference and stops at the first difference
    #[arg(long, global = true, default_value = "auto")]
    device: DeviceChoice,
    /// Use the adapter whose name contains this; of several alike the second by NAME#2
    #[arg(long, global = true, value_name = "NAME-SUBSTRING")]
    adapter: Option<String>,
    /// Use this graphics backend only: vulkan, metal, dx12 or gl
    #[arg(long, global = true)]
    backend: Option<String>,
    /// Type of activations; i8: integers of one byte where few tokens meet quantized weights
    #[arg(long, global = true, default_value = "auto")]
    compute: ComputeChoice,
    /// Seed of everything random
    #[arg(long, global = true)]
    seed: Option<u64>,
    /// Give the same bits on the same device (this version always does)
    #[arg(long, global = true)]
    deterministic: bool,
    /// Most device memory that may be used: 6GiB, 800MiB
    #[arg(long, global = true, value_name = "SIZE", value_parser = crate::disk::parse_size)]
    vram_budget: Option<u64>,
    /// How products of quantized weights are computed
    #[arg(long, global = true, default_value = "auto")]
    engine: EngineChoice,
    /// Use the analytic choice of kernel variants, whatever tune-device found
    #[arg(long, global = true)]
    no_autotune: bool,
    /// Before a model runs, tune its products that never were, for at most this long (10s), and keep the winners
    #[arg(long, global = true, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "no_autotune")]
    autotune: Option<std::time::Duration>,
    /// Replace files and folders that stand in an output's place: any file that is no input, folders that lopper wrote
    #[arg(long, global = true)]
    force: bool,
    /// Write the results as JSON, to a file (--json=FILE) or to standard output (--json)
    #[arg(long, global = true, value_name = "FILE", require_equals = true, num_args = 0..=1, default_missing_value = "-")]
    json: Option<String>,
    /// No progress and no notes: results, warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; twice: say what the device does, by kernel; three times: by kernel and number of workgroups
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl Global {
    /// The adapter that the flags ask for.
    fn selector(&self) -> Result<Selector> {
        let backend = self.backend.as_deref().map(parse_backend).transpose()?;
        let name = self.adapter.clone();
        Ok(Selector { name, backend })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DeviceChoice {
    Auto,
    Cpu,
    Gpu,
    Checked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ComputeChoice {
    Auto,
    F32,
    F16,
    I8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineChoice {
    /// By whatever is quickest: what tune-device found, or else multiplied
    Auto,
    /// Decoded, or as integers, and multiplied
    Mul,
    /// By lookup in tables of sums of activations, where weights have 1 to 4 bits on an even grid (T-MAC) or are ternary
    /// (bitnet.cpp's TL1 and TL2)
    Lut,
    /// By counting bits, with activations rounded to 8, where weights have 1 to 4 bits on an even grid
    #[value(name = "bitserial")]
    BitSerial,
}

impl EngineChoice {
    /// Whether weights are taken as bit planes.
    fn takes_planes(self) -> bool {
        matches!(self, EngineChoice::Lut | EngineChoice::BitSerial)
    }
}

impl From<EngineChoice> for Engine {
    fn from(choice: EngineChoice) -> Self {
        match choice {
            EngineChoice::Auto => Engine::Auto,
            EngineChoice::Mul => Engine::Mul,
            EngineChoice::Lut => Engine::Lut,
            EngineChoice::BitSerial => Engine::BitSerial,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List adapters: type, driver, limits, features, tier
    Devices,
    /// Show what a model is: family, shape, parameters, bytes, tensors
    Inspect(inspect::Arguments),
    /// Compress a model by a recipe; without one, the embedded recipe on the embedded model
    Compress(compress::Arguments),
    /// Take out of a model what matters least: a recipe of one stage
    Prune(prune::Arguments),
    /// Give a model other weights that compute the same and round better: a recipe of one stage
    Transform(transform::Arguments),
    /// Quantize a model: a recipe of one stage
    Quantize(quantize::Arguments),
    /// Train a model on text: low-rank factors, every weight, scales, rounded weights, rounding or masks
    Tune(train::Tune),
    /// Train a model to be like another one
    #[command(alias = "distil")]
    Distill(train::Distil),
    /// Merge models: means, arcs, what each changed of the first, blocks stacked
    Merge(merge::Arguments),
    /// Make a model with experts of one without, or of several
    Upcycle(upcycle::Arguments),
    /// Measure a model's quality
    Eval(eval::Arguments),
    /// Put two models side by side: size, text, tasks
    Compare(compare::Arguments),
    /// Continue a text
    Generate(generate::Arguments),
    /// Talk with a model, line by line
    Chat(generate::chat::Arguments),
    /// Serve a model over HTTP, with OpenAI's paths and a page to talk with it
    Serve(serve::Arguments),
    /// Embed texts by a sentence encoder
    Embed(embed::Arguments),
    /// Write a model's logits for given tokens
    Logits(logits::Arguments),
    /// Take statistics of what goes through a model, for methods that calibrate
    Calibrate(calibrate::Arguments),
    /// Write how much a model's channels matter, by their weights or by gradients
    Scores(scores::Arguments),
    /// Find the entries of a grid that suit a model's weights, for quantize --codebook
    Codebook(codebook::Arguments),
    /// Convert a model
    Export(export::Arguments),
    /// List the tasks: those that are part of the program, and the published ones with where their files come from
    Tasks,
    /// Check every kernel on every adapter against the CPU reference
    Verify(verify::Arguments),
    /// Measure which kernels are quickest on the device, and keep the winners
    TuneDevice(tune::Arguments),
    /// Measure the device, and what the kernels make of it
    Bench(bench::Arguments),
    /// Print a script that completes lopper's commands and flags in a shell
    Completions(shell::Completions),
    /// Print a page of the manual: lopper man eval | man -l -
    Man(shell::Manual),
    /// Write a model of a real shape with random weights
    #[command(hide = true)]
    Synth(synth::Arguments),
    /// Count the mutants of each shader that the case table kills
    #[command(hide = true)]
    Mutate(mutate::Arguments),
}

/// Parses the arguments, runs the command, prints an error if there is one, and returns the exit code.
pub fn main() -> u8 {
    signals::listen();
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    standard_output_as_json(&mut arguments);
    let command = Cli::command().version(version::version());
    let parsed = command.try_get_matches_from(&arguments);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // clap's own way of printing: help to standard output, mistakes to standard error.
            let printed = error.print();
            if let Some(file) = word_behind_json(&arguments) {
                output::complain(&format!("tip: JSON goes to a file with --json={file}"));
            }
            return match (printed, error.use_stderr()) {
                (_, true) => 2,
                (Err(error), false) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    fail(&Error::write("standard output")(error))
                }
                _ => 0,
            };
        }
    };
    if cli.global.verbose < 2 {
        crate::gpu::silence_drivers();
    }
    start_logging(cli.global.verbose);
    if !cli.global.quiet {
        progress::start();
    }
    start_threads();
    let output = match Output::new(&cli.global) {
        Ok(output) => output,
        Err(error) => return fail(&error),
    };
    let result = run(&cli, output);
    signals::unwound();
    for line in disk::swept() {
        output.note(format!("note: {line}"));
    }
    let result = result.map_err(|error| match (output.give_partial(), error) {
        (true, Error::Interrupted) => Error::Partial,
        (_, error) => error,
    });
    let checked =
        result.and_then(|()| disk::check_unchanged()).and_then(|()| output.check_printed());
    match checked {
        Ok(()) => 0,
        Err(error) => fail(&error),
    }
}

fn fail(error: &Error) -> u8 {
    output::complain(&format!("error: {error}"));
    match error {
        Error::Interrupted | Error::Partial | Error::Suspended { .. } => interrupt::code(),
        _ => error.exit_code(),
    }
}

fn run(cli: &Cli, output: &Output) -> Result<()> {
    // Wrong is wrong, whether or not the command comes to need it.
    cli.global.selector()?;
    let runs_a_model = match &cli.command {
        Command::Eval(_) | Command::Compare(_) | Command::Logits(_) => true,
        Command::Generate(_) | Command::Chat(_) | Command::Serve(_) => true,
        Command::Bench(arguments) => arguments.runs_a_model(),
        _ => false,
    };
    if cli.global.autotune.is_some() && !runs_a_model {
        return Err(Error::Argument {
            argument: "--autotune".into(),
            expected: "eval, compare, generate, chat, serve, logits or bench model".into(),
            found: "another command; tune-device tunes by itself".into(),
        });
    }
    let compresses = matches!(
        cli.command,
        Command::Quantize(_)
            | Command::Prune(_)
            | Command::Transform(_)
            | Command::Merge(_)
            | Command::Upcycle(_)
            | Command::Compress(_)
    );
    if cli.global.engine != EngineChoice::Auto && !runs_a_model && !compresses {
        return Err(Error::Argument {
            argument: "--engine".into(),
            expected: "a command that runs a model".into(),
            found: "one that does not".into(),
        });
    }
    match &cli.command {
        Command::Devices => devices::run(&cli.global, output),
        Command::Inspect(arguments) => inspect::run(arguments, output),
        Command::Compress(arguments) => compress::run(&cli.global, arguments, output),
        Command::Prune(arguments) => prune::run(&cli.global, arguments, output),
        Command::Transform(arguments) => transform::run(&cli.global, arguments, output),
        Command::Quantize(arguments) => quantize::run(&cli.global, arguments, output),
        Command::Tune(arguments) => train::tune(&cli.global, arguments, output),
        Command::Distill(arguments) => train::distil(&cli.global, arguments, output),
        Command::Merge(arguments) => merge::run(&cli.global, arguments, output),
        Command::Upcycle(arguments) => upcycle::run(&cli.global, arguments, output),
        Command::Eval(arguments) => eval::run(&cli.global, arguments, output),
        Command::Compare(arguments) => compare::run(&cli.global, arguments, output),
        Command::Generate(arguments) => generate::run(&cli.global, arguments, output),
        Command::Chat(arguments) => generate::chat::run(&cli.global, arguments, output),
        Command::Serve(arguments) => serve::run(&cli.global, arguments, output),
        Command::Codebook(arguments) => codebook::run(arguments, output),
        Command::Embed(arguments) => embed::run(&cli.global, arguments, output),
        Command::Logits(arguments) => logits::run(&cli.global, arguments, output),
        Command::Calibrate(arguments) => calibrate::run(&cli.global, arguments, output),
        Command::Scores(arguments) => scores::run(&cli.global, arguments, output),
        Command::Export(arguments) => export::run(arguments, output),
        Command::Tasks => tasks::run(output),
        Command::Verify(arguments) => verify::run(&cli.global, arguments, output),
        Command::TuneDevice(arguments) => tune::run(&cli.global, arguments, output),
        Command::Bench(arguments) => bench::run(&cli.global, arguments, output),
        Command::Completions(arguments) => {
            shell::completions(arguments, output);
            Ok(())
        }
        Command::Man(arguments) => shell::manual(arguments, output),
        Command::Synth(arguments) => synth::run(&cli.global, arguments, output),
        Command::Mutate(arguments) => mutate::run(&cli.global, arguments, output),
    }
}

/// Starts the threads that all parallel work shares: as many as there are cores, or `RAYON_NUM_THREADS` up to four a core;
/// fewer where the system gives no more, and none at all if need be.
fn start_threads() {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
    let asked = asked.filter(|count| *count > 0).unwrap_or(cores).min(4 * cores);
    // The shared pool can be made once only, and a thread that it is refused while it is made ends every later use of it in a
    // panic: so threads come first, and wait for what the pool has for each.
    let (send, receive) = std::sync::mpsc::channel::<rayon::ThreadBuilder>();
    let receive = Arc::new(Mutex::new(receive));
    let start = |_: &usize| {
        let receive = Arc::clone(&receive);
        let work = move || {
            let mine = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
            if let Ok(mine) = mine {
                mine.run();
            }
        };
        std::thread::Builder::new().name("worker".into()).spawn(work).is_ok()
    };
    let started = (0..asked).take_while(start).count();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(started.max(1));
    let shared = match started {
        0 => pool.use_current_thread().build_global(),
        _ => pool
            .spawn_handler(|mine| {
                let ended = |_| std::io::Error::other("the thread has ended");
                send.send(mine).map_err(ended)
            })
            .build_global(),
    };
    if let Err(error) = shared {
        tracing::warn!("no threads of its own: {error}");
    }
}

/// What an allocation that the system refuses ends in: the process, since nothing can unwind from it.
pub fn out_of_memory(bytes: usize) -> ! {
    static ENDING: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    let code = Error::OutOfMemory { what: String::new(), bytes: 0, used: 0, budget: 0 }.exit_code();
    // What is said, and removing temporaries, allocate a little; if that fails too, nothing is left to do.
    if ENDING.swap(true, std::sync::atomic::Ordering::SeqCst) {
        // Another thread may be about to say it, and is given the time for that.
        std::thread::sleep(std::time::Duration::from_secs(1));
    } else {
        output::complain(&format!("error: out of host memory allocating {bytes} bytes"));
        disk::remove_temporaries();
    }
    signals::end_now(code)
}

fn start_logging(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info,wgpu_core=warn,wgpu_hal=warn,naga=warn",
        _ => "debug",
    };
    // The drivers' complaints about a machine without a display are not the user's concern.
    let default = format!("{level},wgpu_hal={}", if verbose < 2 { "off" } else { "debug" });
    let filter = tracing_subscriber::EnvFilter::try_from_env("LOPPER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .without_time()
        .event_format(Line)
        .init();
}

/// A line of the log looks as the program's own do: `warning: …`.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let name = match *event.metadata().level() {
            tracing::Level::WARN => "warning".to_string(),
            level => level.to_string().to_lowercase(),
        };
        write!(out, "{name}: ")?;
        context.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

/// Takes `--json -` for `--json=-`. With another word behind it `--json` stands alone: that word is the model, or one too many.
fn standard_output_as_json(arguments: &mut Vec<OsString>) {
    let asked = arguments.windows(2).position(|pair| pair[0] == "--json" && pair[1] == "-");
    if let Some(place) = asked {
        arguments[place] = "--json=-".into();
        arguments.remove(place + 1);
    }
}

/// A word behind a `--json` that stands alone.
fn word_behind_json(arguments: &[OsString]) -> Option<&str> {
    let pair = arguments.windows(2).find(|pair| pair[0] == "--json")?;
    pair[1].to_str().filter(|word| !word.starts_with('-'))
}
