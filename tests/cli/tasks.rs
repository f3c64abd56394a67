//! Tasks as a script sees them: flags, JSON fields, and what a mistake costs.

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::program::{NANO, TEXT, TINY, lopper, read_json, rows, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("cli_tasks": figures, mistakes, a_parent_and_its_child)
}

fn figures() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let arguments = format!(
        "eval {NANO} --task headlines,cloze --limit 12 --shots 0,2 --ppl {TEXT} --ctx 128 --max-tokens 256 --json=-"
    );
    let json = succeeds(&folder, &arguments)?.json()?;
    let headlines = &json["tasks"]["headlines"];
    assert!(
        json["schema"] == 1
            && json["perplexity"]["value"].is_f64()
            && json["questions_per_second"].is_f64(),
        "{json}"
    );
    for key in ["acc", "acc_stderr", "acc_norm", "macro_f1", "chance"] {
        assert!(headlines[key].is_f64(), "{key}: {headlines}");
    }
    let counts = headlines["confusion"].as_array().ok_or("a matrix")?;
    let counts = counts.iter().filter_map(Value::as_array).flatten();
    assert!(
        counts.filter_map(Value::as_u64).sum::<u64>() == 12
            && headlines["n"] == 12
            && headlines["shots"] == 2
            && headlines["by_shots"][0]["shots"] == 0
            && json["tasks"]["cloze"]["perplexity"].is_f64(),
        "{json}"
    );
    let text = succeeds(&folder, &format!("eval {NANO} --task headlines --limit 3"))?;
    let found = text.out.contains("macro F1") && text.out.contains("right \\ picked");
    assert!(found, "{text}");
    Ok(())
}

/// Both models answer the same questions, in `compare` and in `eval --base`; what they answered can be compared again.
fn a_parent_and_its_child() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let text = "--ctx 128 --max-tokens 384";
    let tasks = "--task headlines,cloze --limit 30";
    let compare = format!(
        "compare {TINY} {NANO} {text} {tasks} --samples child.jsonl --lm-eval child.json --json=-"
    );
    let run = succeeds(&folder, &compare)?;
    let compared: Value = serde_json::from_str(&run.out)?;
    assert!(
        compared["text"]["kl"]["mean"].as_f64() > Some(0.0)
            && compared["tasks"].as_array().map(Vec::len) == Some(2)
            && compared["summary"].as_str().is_some_and(|words| words.contains("smaller")),
        "{run}"
    );
    let results = read_json(folder.path().join("child.json"))?;
    assert!(results["results"]["headlines"]["acc,none"].is_f64(), "{results}");

    let eval = format!("eval {NANO} --base {TINY} {tasks} --samples again.jsonl --json=-");
    let run = succeeds(&folder, &eval)?;
    let based: Value = serde_json::from_str(&run.out)?;
    assert!(
        based["task_changes"] == compared["tasks"]
            && based["share"] == compared["share"]
            && based["base_tasks"]["cloze"]["n"] == 30
            && based["perplexity"].is_null(),
        "{run}"
    );
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name));
    assert!(read("child.jsonl")? == read("again.jsonl")?, "the same answers, other samples");

    // A model answers beside what is in a file.
    let mixed = format!("compare {TINY} child.jsonl {tasks} --json=-");
    let run = succeeds(&folder, &mixed)?;
    let mixed: Value = serde_json::from_str(&run.out)?;
    assert!(mixed["tasks"] == compared["tasks"], "{run}");
    Ok(())
}

fn mistakes() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let range = "{\"question\":\"Q\",\"choices\":[\"a\",\"b\"],\"answer\":5}\n";
    std::fs::write(folder.path().join("range.jsonl"), range)?;
    std::fs::write(folder.path().join("empty.jsonl"), "")?;
    let table = "
        --task nothing => mmlu-mini
        --task range.jsonl => range.jsonl: line 1: expected an answer from 0 to 1
        --task empty.jsonl => at least one question
        --task headlines,headlines => twice
        --task mmlu-mini --shots 0,90 => examples
        --task headlines --shots 500 --limit 2 => context of 512 tokens
        --task headlines --limit 0 => --limit
        --task headlines --shots-from range.jsonl => embedded
        --shots 2 --ppl embedded:heldout-2026 => --task
    ";
    lopper(&folder, &format!("eval {NANO} --device cpu"))?.refused(2, "--task");
    for (flags, said) in rows(table) {
        lopper(&folder, &format!("eval {NANO} {flags} --device cpu"))?.refused(2, said);
    }
    Ok(())
}
