//! Nothing of the user's is destroyed: what may be replaced, by what, and how it looks from outside while it happens.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use lopper::disk::{Target, is_input, replace_file, sweep, swept};
use tempfile::TempDir;

use crate::program::{NANO, command, lopper, read_json, snapshot, succeeds};

pub fn trials() -> Vec<Trial> {
    let everywhere = suite!("cli_outputs": side_outputs, folders, leftovers);
    match cfg!(unix) {
        true => {
            let unix = suite!("cli_outputs":
                streams, links, modes, never_missing, killed, standard_output, closed_pipe);
            everywhere.into_iter().chain(unix).collect()
        }
        false => everywhere,
    }
}

/// Two questions, and a folder with them, a model and a file of somebody's.
fn world() -> Result<TempDir, Failed> {
    let folder = TempDir::new()?;
    succeeds(&folder, &format!("export {NANO} --format hf --out m"))?;
    let task =
        r#"{"text": "a", "label": "yes"}"#.to_string() + "\n" + r#"{"text": "b", "label": "no"}"#;
    std::fs::write(folder.path().join("task.jsonl"), task)?;
    std::fs::write(folder.path().join("letter"), "dear all")?;
    Ok(folder)
}

/// Every flag that names a file beside the main output.
const SIDE: &str = "
inspect m --json=OUT
export m --format gguf --out NEW.gguf --json=OUT
eval m --task headlines:task.jsonl --samples OUT
eval m --task headlines:task.jsonl --lm-eval OUT
verify --kernel PAGE --page OUT
";

fn side_outputs() -> Result<(), Failed> {
    let folder = world()?;
    let runs = std::cell::Cell::new(0);
    for (index, line) in SIDE.lines().filter(|line| !line.is_empty()).enumerate() {
        let run = |out: &str, force: bool| -> Result<crate::program::Run, Failed> {
            runs.set(runs.get() + 1);
            let new = format!("new{}", runs.get());
            let flags = if force { "--device cpu --force" } else { "--device cpu" };
            let mut command = command(folder.path(), "");
            for word in line.split(' ').chain(flags.split(' ')) {
                command.arg(match word {
                    "PAGE" => first_case(),
                    word => word.replace("OUT", out).replace("NEW", &new),
                });
            }
            Ok(command.output()?.into())
        };
        let before = snapshot(&folder)?;
        let refused = |force: bool, out: &str, said: &str| -> Result<(), Failed> {
            run(out, force)?.refused(4, &format!("{out} & {said}"));
            assert_eq!(before, snapshot(&folder)?, "{line}: {out}");
            Ok(())
        };
        // Somebody's file, and the model itself.
        refused(false, "letter", "--force")?;
        refused(false, "m/model.safetensors", "--force")?;
        if !line.starts_with("verify") {
            let weights = run("m/model.safetensors", true)?;
            weights.refused(4, "m/model.safetensors & this run reads it");
            let kept = snapshot(&folder)?;
            let model = Path::new("m/model.safetensors");
            assert_eq!(before.get(model), kept.get(model), "{line}");
        }
        // Its own earlier file, an empty one, and with --force any.
        let out = format!("out{index}");
        std::fs::write(folder.path().join("empty"), "")?;
        for (out, force) in
            [(out.as_str(), false), (&out, false), ("empty", false), ("letter", true)]
        {
            let run = run(out, force)?;
            assert!(run.code == Some(0), "{line} to {out}: {run}");
            assert!(std::fs::metadata(folder.path().join(out))?.len() > 9, "{line} to {out}");
        }
        std::fs::write(folder.path().join("letter"), "dear all")?;
    }
    Ok(())
}

/// The text of a kernel's first case.
fn first_case() -> String {
    let kernel = lopper::kernels::TABLE.iter().find(|kernel| kernel.name == "copy/transpose");
    let kernel = kernel.expect("the kernel");
    let variant = (kernel.variants)().remove(0);
    let case = kernel.checks(&variant).remove(0);
    format!("{} [{}] {}", kernel.name, variant.label(), case.label)
}

fn folders() -> Result<(), Failed> {
    let folder = world()?;
    let at = |name: &str| folder.path().join(name);
    let export = format!("export {NANO} --format packed --out m --force");
    succeeds(&folder, &export)?;
    assert!(std::fs::read_to_string(at("m/config.json"))?.contains("quantization_config"));
    // What its manifest does not name is somebody's.
    std::fs::write(at("m/notes.txt"), "mine")?;
    std::fs::create_dir(at("m/mine"))?;
    let before = snapshot(&folder)?;
    lopper(&folder, &export)?.refused(4, "m: cannot write & manifest.json & mine, notes.txt");
    // A model that lopper did not write.
    std::fs::create_dir(at("other"))?;
    std::fs::write(at("other/config.json"), "{}")?;
    let other = lopper(&folder, &export.replace("--out m", "--out other"))?;
    other.refused(4, "other: cannot write & manifest.json");
    std::fs::remove_dir_all(at("other"))?;
    assert_eq!(before, snapshot(&folder)?);
    // An artifact is known by its own manifest, and an empty folder holds nothing.
    let quantize = format!("quantize {NANO} --no-eval --out q --force");
    std::fs::create_dir(at("q"))?;
    for _ in 0..2 {
        succeeds(&folder, &quantize)?;
    }
    Ok(())
}

fn leftovers() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let at = |name: &str| folder.path().join(name);
    for name in [".lopper-dead", ".lopper-aside/replaced", ".lopper-live"] {
        std::fs::create_dir_all(at(name))?;
    }
    std::fs::write(at(".lopper-dead/output"), "half")?;
    std::fs::write(at(".lopper-aside/replaced/result"), "whole")?;
    let live = File::open(at(".lopper-live"));
    let lock = live.as_ref().ok().map(|live| live.try_lock());
    let run = succeeds(&folder, &format!("inspect {NANO} --json=x.json"))?;
    if cfg!(unix) {
        assert!(matches!(lock, Some(Ok(()))), "a folder can be locked");
        let said = [".lopper-dead", ".lopper-aside", "restored"].map(|text| run.err.contains(text));
        assert!(said == [true; 3] && !run.err.contains("-live"), "{run}");
        let left: Vec<_> = snapshot(&folder)?.into_keys().collect();
        assert_eq!(
            left,
            [".lopper-live", "result", "x.json"].map(std::path::PathBuf::from).to_vec()
        );
    }
    Ok(())
}

/// A null device, a pipe and links, in a folder of their own. The device only where the machine lets one be made.
fn streams() -> Result<(), Failed> {
    use std::os::unix::fs::FileTypeExt;
    let folder = TempDir::new()?;
    let at = |name: &str| folder.path().join(name);
    let make = |program: &str, arguments: &[&str]| -> Result<bool, Failed> {
        Ok(Command::new(program).args(arguments).current_dir(&folder).output()?.status.success())
    };
    assert!(make("mkfifo", &["pipe"])?);
    let device = make("mknod", &["null", "c", "1", "3"])?;
    std::os::unix::net::UnixListener::bind(at("socket"))?;
    let commands = [
        format!("inspect {NANO} --json=OUT"),
        format!("export {NANO} --format gguf --out OUT"),
        format!("logits {NANO} --tokens 1,2 --out OUT"),
    ];
    for arguments in &commands {
        let reader = {
            let pipe = at("pipe");
            std::thread::spawn(move || std::fs::read(pipe))
        };
        succeeds(&folder, &arguments.replace("OUT", "pipe"))?;
        let read = reader.join().map_err(|_| "the reader")??;
        assert!(read.len() > 100, "{arguments}: {} bytes", read.len());
        for force in ["", " --force"] {
            if device {
                succeeds(&folder, &(arguments.replace("OUT", "null") + force))?;
            }
            let socket = lopper(&folder, &(arguments.replace("OUT", "socket") + force))?;
            socket.refused(4, "socket: cannot write & a socket");
        }
    }
    // A folder is no stream of bytes.
    for force in ["", " --force"] {
        let hf = format!("export {NANO} --format hf --out pipe{force}");
        lopper(&folder, &hf)?.refused(4, "pipe: cannot write & a pipe");
    }
    assert!(at("pipe").symlink_metadata()?.file_type().is_fifo());
    if device {
        assert!(at("null").symlink_metadata()?.file_type().is_char_device());
    }
    Ok(())
}

fn links() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("there"))?;
    for (to, from) in [("there/new.json", "new"), ("there/old", "old"), ("there/m", "m")] {
        std::os::unix::fs::symlink(to, at(from))?;
    }
    std::fs::write(at("there/old"), "kept")?;
    succeeds(&folder, &format!("inspect {NANO} --json=new"))?;
    assert_eq!(read_json(at("there/new.json"))?["schema"], 1);
    lopper(&folder, &format!("inspect {NANO} --json=old"))?.refused(4, "old & --force");
    for format in ["hf", "packed"] {
        succeeds(&folder, &format!("export {NANO} --format {format} --out m --force"))?;
    }
    succeeds(&folder, &format!("export {NANO} --format gguf --out old --force"))?;
    assert!(std::fs::read(at("there/old"))?.starts_with(b"GGUF"));
    assert!(["new", "old", "m"].iter().all(|name| at(name).is_symlink()), "links stay links");
    // Under another name an input is an input.
    std::os::unix::fs::symlink("m/config.json", at("alias"))?;
    std::fs::hard_link(at("there/m/config.json"), at("twin"))?;
    for name in ["alias", "twin"] {
        let onto = lopper(&folder, &format!("inspect m --json={name} --force"))?;
        onto.refused(4, "this run reads it");
    }
    Ok(())
}

/// Files are made under the user's umask; who may read a file stays as it was when it is replaced.
fn modes() -> Result<(), Failed> {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new()?;
    let program = env!("CARGO_BIN_EXE_lopper");
    for (umask, wanted) in [("077", 0o600), ("022", 0o644)] {
        let script = format!(
            "umask {umask}; {program} export {NANO} --format gguf --out {umask}.gguf --json={umask}.json && {program} export {NANO} --format hf --out {umask}"
        );
        let run = Command::new("sh").args(["-c", &script]).current_dir(&folder).output()?;
        assert!(run.status.success(), "{run:?}");
        for name in ["UMASK.gguf", "UMASK.json", "UMASK/config.json", "UMASK/model.safetensors"] {
            let path = folder.path().join(name.replace("UMASK", umask));
            let mode = path.metadata()?.permissions().mode() & 0o777;
            assert_eq!(mode, wanted, "{} under umask {umask}", path.display());
        }
    }
    succeeds(&folder, &format!("export {NANO} --format gguf --out 077.gguf --force"))?;
    let mode = folder.path().join("077.gguf").metadata()?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    Ok(())
}

/// Whoever looks finds the old result or the new one, at every moment of a replacement.
fn never_missing() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let (file, out) = (folder.path().join("file"), folder.path().join("out"));
    let target = Target { path: &out, force: true, folder: true, model: Path::new("none") };
    let fill = |text: &str| {
        let put = text.as_bytes();
        replace_file(&file, |bytes| {
            bytes.write_all(put).map_err(lopper::error::Error::write(&file))
        })?;
        target.write(|path| {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("whole"), text).unwrap();
            Ok(())
        })
    };
    fill("first")?;
    let (stop, missed, looks) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let there = file.exists() && out.exists();
                missed.fetch_add(usize::from(!there), Ordering::Relaxed);
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let filled = (0..60).try_for_each(|turn| fill(&format!("turn {turn}")));
        stop.store(true, Ordering::Relaxed);
        filled
    })?;
    assert!(looks.into_inner() > 100);
    assert_eq!(missed.into_inner(), 0, "looks that found a name missing");
    assert_eq!(std::fs::read_to_string(out.join("whole"))?, "turn 59");
    assert!(!is_input(&file));
    // Without --force the one that comes later gives way.
    let late = Target { force: false, ..target };
    std::fs::remove_dir_all(&out)?;
    let error = late.write(|path| {
        std::fs::create_dir(path).unwrap();
        std::fs::create_dir(&out).unwrap();
        Ok(())
    });
    assert!(matches!(error, Err(lopper::error::Error::Exists { .. })), "{error:?}");
    sweep(folder.path());
    assert!(swept().iter().all(|line| !line.contains(&*folder.path().to_string_lossy())));
    Ok(())
}

/// Killed at any moment, a replacement leaves the old result or the new one, and nothing that the next run does not remove.
fn killed() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let run = |format: &str| format!("export {NANO} --format {format} --out out --force");
    let start = Instant::now();
    succeeds(&folder, &run("hf"))?;
    let whole = start.elapsed();
    for turn in 0..12u32 {
        let format = ["packed", "hf"][turn as usize % 2];
        let mut child = command(folder.path(), &run(format)).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(whole * (turn + 4) / 16);
        child.kill()?;
        child.wait()?;
        succeeds(&folder, "inspect out")?;
    }
    succeeds(&folder, &run("hf"))?;
    let names: Vec<_> = std::fs::read_dir(&folder)?.map(|e| e.map(|e| e.file_name())).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    Ok(())
}

/// What cannot be printed is an error, for text, JSON and help.
fn standard_output() -> Result<(), Failed> {
    if !Path::new("/dev/full").exists() {
        return Ok(());
    }
    let folder = TempDir::new()?;
    for arguments in [&format!("inspect {NANO}"), &format!("inspect {NANO} --json=-"), "--help"] {
        let full = File::options().write(true).open("/dev/full")?;
        let run = command(folder.path(), arguments).stdout(full).output()?;
        crate::program::Run::from(run).refused(4, "standard output: cannot write");
    }
    Ok(())
}

/// A reader that has gone ends the work at once, and quietly.
fn closed_pipe() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let arguments = format!("generate {NANO} --prompt the -n 100000 --device cpu");
    let mut child =
        command(folder.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    drop(child.stdout.take());
    let start = Instant::now();
    while child.try_wait()?.is_none() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let run = crate::program::Run::from(child.wait_with_output()?);
    assert!(run.code == Some(141) && run.err.is_empty(), "{run}");
    Ok(())
}
