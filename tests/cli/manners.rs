//! How the program speaks: in pipes, in tables, about itself.

use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use tempfile::TempDir;

use crate::machine::has_gpu;
use crate::program::{NANO, Run, TEXT, TINY, command, lopper, runs, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("manners":
        version, json_alone, tables_fit, tasks_are_listed, cases_are_listed, shells, json_is_documented, colours;
        gpu: drivers_are_silent, the_environment_chooses, quiet, progress_in_pipes)
}

fn version() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for flag in ["--version", "-V"] {
        let said = runs(&folder, flag)?.out;
        let commit = said.strip_prefix(concat!("lopper ", env!("CARGO_PKG_VERSION"), " (commit "));
        let commit = commit.and_then(|rest| rest.strip_suffix(")\n")).ok_or(said.clone())?;
        let hash = commit.len() == 12 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(hash || commit == "unknown", "{said}");
    }
    Ok(())
}

fn json_alone() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let said = succeeds(&folder, &format!("inspect {NANO} --json=-"))?.out;
    assert!(said.starts_with('{'), "{said}");
    for arguments in [
        format!("inspect {NANO} --json"),
        format!("inspect {NANO} --json -"),
        format!("inspect --json {NANO}"),
        format!("--json - inspect {NANO}"),
    ] {
        assert_eq!(succeeds(&folder, &arguments)?.out, said, "{arguments}");
    }
    // A file is named with =, or it would be taken for the model.
    let run = lopper(&folder, &format!("inspect {NANO} --json x.json"))?;
    run.refused(2, "--json=x.json");
    assert!(!folder.path().join("x.json").exists());
    Ok(())
}

/// No line of a table is longer than 80: from the one above the rule to the next blank one.
fn fits(about: &str, said: &str) -> Result<(), Failed> {
    let lines: Vec<&str> = said.lines().collect();
    let rule = |line: &&str| line.starts_with("--") && line.bytes().all(|b| b == b'-' || b == b' ');
    let rules: Vec<usize> = (0..lines.len()).filter(|index| rule(&lines[*index])).collect();
    assert!(!rules.is_empty(), "{about}: no table in {said}");
    for place in rules {
        let table = lines[place - 1..].iter().take_while(|line| !line.is_empty());
        for line in table {
            assert!(line.chars().count() <= 80, "{about}: {line}");
        }
    }
    Ok(())
}

fn tables_fit() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let tasks = "--task headlines,cloze --limit 4";
    for arguments in [
        format!("inspect {TINY}"),
        format!("inspect {TINY} --groups"),
        "compress --dry-run".into(),
        format!("quantize {NANO} --out q --ctx 64 --max-tokens 256"),
        format!("eval {NANO} {tasks}"),
        format!("compare {TINY} {NANO} --ctx 64 --max-tokens 256 {tasks}"),
        "tasks".into(),
    ] {
        fits(&arguments, &succeeds(&folder, &arguments)?.out)?;
    }
    if has_gpu() {
        fits("devices", &runs(&folder, "devices -v")?.out)?;
        let verify = "verify --kernel residual/add --random 0 --tier baseline";
        fits(verify, &runs(&folder, verify)?.out)?;
    }
    Ok(())
}

fn tasks_are_listed() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let said = succeeds(&folder, "tasks")?.out;
    for word in ["headlines", "mmlu-mini", "cloze", "hellaswag", "github.com/rowanz/hellaswag"] {
        assert!(said.contains(word), "no {word} in {said}");
    }
    let json = succeeds(&folder, "tasks --json")?.json()?;
    assert!(json["embedded"][1]["questions"] == 281 && json["published"][0]["layout"] == "mmlu");
    let asked = |task: &str| lopper(&folder, &format!("eval {NANO} --device cpu --task {task}"));
    asked("headlins")?.refused(2, "headlines? & `lopper tasks`");
    asked("hellaswag")?.refused(2, "hellaswag:FILE & github.com/rowanz");
    asked("piqa:valid.jsonl")?
        .refused(2, "huggingface.co/datasets/ybisk/piqa & no file `valid.jsonl`");
    Ok(())
}

fn cases_are_listed() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let list = "verify --list --kernel residual/* --random 0";
    let json = runs(&folder, &format!("{list} --json"))?.json()?;
    let cases = json["cases"].as_array().ok_or("cases")?;
    let said = runs(&folder, list)?.out;
    for case in cases {
        let text = case["text"].as_str().ok_or("a text")?;
        assert!(text.starts_with("residual/") && said.lines().any(|line| line == text), "{text}");
    }
    assert!(!cases.is_empty() && said.contains(&format!("{} cases of", cases.len())), "{said}");
    Ok(())
}

fn shells() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = runs(&folder, &format!("completions {shell}"))?.out;
        assert!(script.contains("quantize") && script.contains("shot-selection"), "{shell}");
    }
    let page = runs(&folder, "man")?.out;
    assert!(page.contains(".TH lopper 1") && page.contains("quantize"), "{page}");
    let page = runs(&folder, "man bench kernels")?.out;
    assert!(page.contains("ceilings") && page.contains(".SH OPTIONS"), "{page}");
    lopper(&folder, "man evaluate")?.refused(2, "man: expected devices & eval");
    Ok(())
}

/// Every field that commands give at the top is in the README's table.
fn json_is_documented() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let readme = std::fs::read_to_string("README.md")?;
    let text = "--ctx 64 --max-tokens 256";
    for arguments in [
        format!("inspect {NANO} --groups"),
        "tasks".into(),
        format!("eval {NANO} --ppl {TEXT} {text} --task cloze --limit 2"),
        format!("eval {NANO} --base {NANO} --ppl {TEXT} {text} --task cloze --limit 2"),
        format!("compare {NANO} {NANO} {text}"),
        format!("generate {NANO} --prompt The -n 1"),
        format!("logits {NANO} --tokens 1 --out l"),
        format!("scores {NANO} --score l1 --out s"),
        format!("export {NANO} --format gguf --out e.gguf"),
        format!("quantize {NANO} --out q {text}"),
        format!("quantize {NANO} --out r {text} --dry-run"),
        "verify --list --kernel residual/add".into(),
    ] {
        let json = succeeds(&folder, &format!("{arguments} --json"))?.json()?;
        let Value::Object(fields) = json else { return Err(arguments.into()) };
        for field in fields.keys().filter(|field| *field != "schema") {
            assert!(
                readme.contains(&format!("`{field}`")),
                "{arguments}: `{field}` is not in the README"
            );
        }
    }
    Ok(())
}

/// Standard error that is no terminal gets plain text.
fn colours() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let run = succeeds(&folder, &format!("eval {NANO} -vv --task cloze --limit 2"))?;
    assert!(run.err.contains("questions/s") && !run.err.contains('\u{1b}'), "{run}");
    Ok(())
}

/// Whatever libraries say of a machine without a display.
fn drivers_are_silent() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for value in [None, Some("relative")] {
        let mut devices = command(folder.path(), "devices");
        devices.env_remove("XDG_RUNTIME_DIR");
        if let Some(value) = value {
            devices.env("XDG_RUNTIME_DIR", value);
        }
        let run = Run::from(devices.output()?);
        assert!(run.code == Some(0) && run.err.is_empty(), "{value:?}: {run}");
    }
    Ok(())
}

fn the_environment_chooses() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let listed = |name: &str, value: &str, flags: &str| -> Result<usize, Failed> {
        let mut devices = command(folder.path(), &format!("devices --json {flags}"));
        devices.env_remove("WGPU_BACKEND").env_remove("WGPU_ADAPTER_NAME").env(name, value);
        let json = Run::from(devices.output()?).json()?;
        Ok(json.as_array().map_or(0, Vec::len))
    };
    assert!(listed("LANG", "C", "")? > 0);
    assert_eq!(listed("WGPU_ADAPTER_NAME", "nonesuch", "")?, 0);
    let absent = if cfg!(target_vendor = "apple") { "dx12" } else { "metal" };
    assert_eq!(listed("WGPU_BACKEND", absent, "")?, 0);
    // A flag is stronger.
    let all = listed("LANG", "C", "--backend vulkan")?;
    assert_eq!(listed("WGPU_BACKEND", absent, "--backend vulkan")?, all);
    let mut wrong = command(folder.path(), "devices");
    Run::from(wrong.env("WGPU_BACKEND", "voodoo").output()?).refused(2, "WGPU_BACKEND & voodoo");
    Ok(())
}

/// Notes stay away, warnings do not.
fn quiet() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let eval = format!("eval {NANO} --ppl {TEXT} --ctx 600 --max-tokens 600 --device gpu -v");
    let loud = runs(&folder, &eval)?;
    let plain = runs(&folder, &eval.replace(" -v", " -q"))?;
    assert!(loud.err.contains("device: ") && loud.err.contains("warning: windows"), "{loud}");
    assert!(plain.err.lines().count() == 1 && plain.err.starts_with("warning: windows"), "{plain}");
    assert!(plain.out.contains("perplexity"), "{plain}");
    Ok(())
}

/// What takes long says so now and then, in whole lines.
fn progress_in_pipes() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let verify =
        "verify --kernel residual/add --tier baseline --inject hang:1 --case-timeout 7 --fail-fast";
    let run = lopper(&folder, verify)?;
    let said = run.err.lines().any(|line| line.starts_with("note: ") && line.ends_with(" s"));
    assert!(said && !run.err.contains('\u{1b}') && !run.err.contains('\r'), "{run}");
    let run = lopper(&folder, &format!("{verify} -q"))?;
    assert!(!run.err.contains("note: "), "{run}");
    Ok(())
}
