//! Inputs that are no regular files, too large, or that change while they are read.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use lopper::disk::Input;
use lopper::formats::Source;
use lopper::formats::safetensors::Safetensors;
use tempfile::TempDir;

use crate::program::{NANO, Run, TEXT, command, lopper, succeeds};

pub fn trials() -> Vec<Trial> {
    let everywhere = suite!("cli_inputs": bounds, changes);
    match cfg!(unix) {
        true => everywhere.into_iter().chain(suite!("cli_inputs": streams, limits)).collect(),
        false => everywhere,
    }
}

/// A file that is an input, and a command that reads it.
const INPUTS: &str = "
m/config.json eval m --ppl embedded:heldout-2026
m/tokenizer.json eval m --ppl embedded:heldout-2026
m/tokenizer_config.json eval m --ppl embedded:heldout-2026
m/special_tokens_map.json eval m --ppl embedded:heldout-2026
m/generation_config.json eval m --ppl embedded:heldout-2026
m/chat_template.jinja generate m --chat --prompt a
m/model.safetensors inspect m
m/model.safetensors.index.json inspect m
model.gguf inspect model.gguf
recipe.toml compress recipe.toml
text.txt eval m --ppl text.txt
text.txt scores m --score param_first --calib text.txt --out s
text.txt compare m m --ppl text.txt
task.toml eval m --task task.toml
task.jsonl eval m --task headlines:task.jsonl
shots.jsonl eval m --task headlines:good.jsonl --shots-from shots.jsonl
rows.json scores m --score param_first --token-file rows.json --out s
a.json bench --compare a.json a.json
answers.jsonl compare answers.jsonl answers.jsonl
shader.wgsl verify --kernel copy/transpose --shader shader.wgsl
";

/// Runs a command that must not wait for anything.
fn at_once(folder: &Path, arguments: &str) -> Result<Run, Failed> {
    let mut command = command(folder, arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > Duration::from_secs(20) {
            child.kill()?;
            child.wait()?;
            return Err(format!("lopper {arguments} waits").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?.into())
}

/// A pipe, an endless device and a folder in the place of each input are refused at once, with what they are.
fn streams() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let at = |name: &str| folder.path().join(name);
    succeeds(&folder, &format!("export {NANO} --format hf --out m"))?;
    let question = r#"{"text": "a", "label": "yes"}"#;
    std::fs::write(at("good.jsonl"), [question, question].join("\n"))?;
    let make = |program: &str, arguments: &[&str]| -> Result<bool, Failed> {
        Ok(Command::new(program).args(arguments).current_dir(&folder).output()?.status.success())
    };
    for line in INPUTS.lines().filter(|line| !line.is_empty()) {
        let (name, arguments) = line.split_once(' ').ok_or("a name and a command")?;
        let whole = std::fs::read(at(name)).ok();
        if name.ends_with("index.json") {
            std::fs::rename(at("m/model.safetensors"), at("aside"))?;
        }
        let said = |what: &str| -> Result<(), Failed> {
            let run = at_once(folder.path(), arguments)?;
            run.refused(2, &format!("{name} & {what}"));
            Ok(())
        };
        let _ = std::fs::remove_file(at(name));
        assert!(make("mkfifo", &[name])?);
        said("a pipe")?;
        std::fs::remove_file(at(name))?;
        if make("mknod", &[name, "c", "1", "5"])? {
            said("a terminal or another device")?;
            std::fs::remove_file(at(name))?;
        }
        if !name.ends_with(".gguf") && !name.ends_with(".safetensors") {
            std::fs::create_dir(at(name))?;
            said("a folder")?;
            std::fs::remove_dir(at(name))?;
        }
        if name.ends_with("index.json") {
            std::fs::rename(at("aside"), at("m/model.safetensors"))?;
        }
        if let Some(whole) = whole {
            std::fs::write(at(name), whole)?;
        }
    }
    // A cache that cannot be read or written is no reason not to work.
    std::fs::create_dir(at("tuned.json"))?;
    let devices = lopper(&folder, "devices -v")?;
    let none = devices.out.contains("no adapter");
    assert!(devices.code == Some(0) && (none || devices.err.contains("a folder")), "{devices}");
    Ok(())
}

/// JSON and TOML are bounded before they are parsed.
fn bounds() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let at = |name: &str| folder.path().join(name);
    succeeds(&folder, &format!("export {NANO} --format hf --out m"))?;
    let many = "1,".repeat(9 << 20);
    std::fs::write(at("rows.json"), &many)?;
    let scores = "scores m --score param_first --token-file rows.json --out s";
    lopper(&folder, scores)?.refused(2, "rows.json & at most 8388608 values & 9437184");
    std::fs::write(at("recipe.toml"), &many)?;
    lopper(&folder, "compress recipe.toml")?.refused(2, "recipe.toml & at most 4194304 bytes");
    let tokenizer = std::fs::read(at("m/tokenizer.json"))?;
    std::fs::write(at("m/tokenizer.json"), &many)?;
    let eval = format!("eval m --ppl {TEXT}");
    lopper(&folder, &eval)?.refused(2, "tokenizer.json & at most 8388608 values");
    std::fs::write(at("m/tokenizer.json"), tokenizer)?;
    std::fs::write(at("m/config.json"), &many)?;
    lopper(&folder, &eval)?.refused(2, "config.json & at most 4194304 bytes");
    Ok(())
}

/// A file that shrinks or is written to is an error that names it, not a crash.
fn changes() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let path = folder.path().join("m/model.safetensors");
    succeeds(&folder, &format!("export {NANO} --format hf --out m"))?;
    let whole = std::fs::read(&path)?;
    let model = Safetensors::open(Source::open(&path)?)?;
    let last = model.names().max_by_key(|name| model.get(name).map(|t| t.range.end));
    let last = model.get(last.ok_or("a tensor")?).ok_or("a tensor")?;
    let before = last.bytes()?.into_owned();
    assert_eq!(before, whole[last.range.clone()]);
    model.sources()[0].unchanged()?;
    std::fs::File::options().write(true).open(&path)?.set_len(whole.len() as u64 / 2)?;
    let error = last.bytes().map_err(|error| error.to_string()).err().unwrap_or_default();
    for said in ["model.safetensors", "changed while it was read", &whole.len().to_string()] {
        assert!(error.contains(said), "{error}");
    }
    // As long as before, and written to.
    std::fs::write(&path, &whole)?;
    let input = Input::open(&path)?;
    input.unchanged()?;
    let later = std::time::SystemTime::now() + Duration::from_secs(9);
    std::fs::File::options().write(true).open(&path)?.set_modified(later)?;
    assert!(input.unchanged().is_err_and(|error| error.to_string().contains("written to")));
    Ok(())
}

/// Memory and threads that the system refuses, or that are asked for in numbers that help nobody.
fn limits() -> Result<(), Failed> {
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    let folder = TempDir::new()?;
    let program = env!("CARGO_BIN_EXE_lopper");
    let shell = |script: String| -> Result<Run, Failed> {
        let mut command = Command::new("sh");
        let run = command.args(["-c", &script]).current_dir(&folder).output()?;
        Ok(run.into())
    };
    std::fs::File::create(folder.path().join("text"))?.set_len(900 << 20)?;
    let eval = format!("{program} eval {NANO} --ppl text --device cpu");
    shell(format!("ulimit -v 250000; RAYON_NUM_THREADS=1 {eval}"))?
        .refused(3, "out of host memory");
    without_threads(&folder)?;
    let inspect = format!("{program} inspect {NANO}");
    let run = shell(format!("ulimit -v 4000000; RAYON_NUM_THREADS=100000 {inspect}"))?;
    assert!(run.code == Some(0) && run.err.is_empty(), "{run}");
    Ok(())
}

/// A system that gives no thread beyond the first: the same work, on one. The superuser's processes have no such limit.
fn without_threads(folder: &TempDir) -> Result<(), Failed> {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let program = folder.path().join("lopper");
    std::fs::copy(env!("CARGO_BIN_EXE_lopper"), &program)?;
    for path in [folder.path(), &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    }
    let superuser = std::fs::metadata("/proc/self").is_ok_and(|about| {
        use std::os::unix::fs::MetadataExt;
        about.uid() == 0
    });
    for command in [
        format!("inspect {NANO}"),
        format!("eval {NANO} --ppl embedded:heldout-2026 --ctx 64 --max-tokens 128 --device cpu"),
        format!("quantize {NANO} --no-eval --device cpu --dry-run"),
    ] {
        let mut shell = Command::new("prlimit");
        shell.args(["--nproc=1", "--"]).arg(&program).args(command.split(' ')).current_dir(folder);
        if superuser {
            shell.uid(65_534).gid(65_534);
        }
        let run: Run = shell.env("LOPPER_CACHE", folder.path()).output()?.into();
        assert!(run.code == Some(0) && !run.err.contains("panicked"), "{command}: {run}");
    }
    Ok(())
}
