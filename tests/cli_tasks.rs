//! Tasks as a script sees them: flags, JSON fields, and what a mistake costs.

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::cli::{NANO, TEXT, check, lopper, succeeds};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cli_tasks::figures", figures),
        Trial::test("cli_tasks::mistakes", mistakes),
    ]
}

fn figures() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let arguments = format!(
        "eval {NANO} --task headlines,cloze --limit 12 --shots 0,2 --ppl {TEXT} --ctx 128 --max-tokens 256 --json=-"
    );
    let run = succeeds(folder.path(), &arguments)?;
    let json: Value = serde_json::from_str(&run.out)?;
    let headlines = &json["tasks"]["headlines"];
    check(
        json["schema"] == 1
            && json["perplexity"]["value"].is_f64()
            && json["questions_per_second"].is_f64(),
        || run.out.clone(),
    )?;
    for key in ["acc", "acc_stderr", "acc_norm", "macro_f1", "chance"] {
        check(headlines[key].is_f64(), || format!("{key}: {headlines}"))?;
    }
    let counts = headlines["confusion"].as_array().ok_or("a matrix")?;
    let counts = counts.iter().filter_map(Value::as_array).flatten();
    check(
        counts.filter_map(Value::as_u64).sum::<u64>() == 12
            && headlines["n"] == 12
            && headlines["shots"] == 2
            && headlines["by_shots"][0]["shots"] == 0
            && json["tasks"]["cloze"]["perplexity"].is_f64(),
        || run.out.clone(),
    )?;
    let text = succeeds(
        folder.path(),
        &format!("eval {NANO} --task headlines --limit 3"),
    )?;
    let found = text.out.contains("macro F1") && text.out.contains("right \\ picked");
    check(found, || text.out.clone())
}

fn mistakes() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let range = "{\"question\":\"Q\",\"choices\":[\"a\",\"b\"],\"answer\":5}\n";
    std::fs::write(folder.path().join("range.jsonl"), range)?;
    std::fs::write(folder.path().join("empty.jsonl"), "")?;
    for (flags, parts) in [
        ("", "--task"),
        ("--task nothing", "mmlu-mini"),
        (
            "--task range.jsonl",
            "range.jsonl: line 1: expected an answer from 0 to 1",
        ),
        ("--task empty.jsonl", "at least one question"),
        ("--task headlines,headlines", "twice"),
        ("--task mmlu-mini --shots 0,90", "examples"),
        (
            "--task headlines --shots 500 --limit 2",
            "context of 512 tokens",
        ),
        ("--task headlines --limit 0", "--limit"),
        ("--task headlines --shots-from range.jsonl", "embedded"),
        ("--shots 2 --ppl embedded:heldout-2026", "--task"),
    ] {
        let run = lopper(folder.path(), &format!("eval {NANO} {flags} --device cpu"))?;
        check(run.code == Some(2) && run.err.contains(parts), || {
            format!("{flags}: {:?}, {}", run.code, run.err)
        })?;
    }
    Ok(())
}
