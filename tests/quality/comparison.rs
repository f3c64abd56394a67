//! Answers of two models side by side: the share by its definition, files in and out, and what is said to bad ones.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::measure::quality::comparison::compare_tasks;
use lopper::measure::quality::harness::{Origin, results, samples};
use lopper::measure::quality::outcome::{Asked, ChoiceScore, Form, Outcome, TaskOutcome};
use lopper::measure::quality::predictions::{read_predictions, read_samples};
use lopper::measure::quality::statistics::Bootstrap;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{NANO, TINY, lopper, read_json, rows, snapshot, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("comparison":
        share_by_hand, pairs_are_items, lm_eval_results, samples_return, lm_eval_samples,
        predictions_of_others, predictions_by_lm_eval, one_item_has_no_error, bad_answers,
        compare_answers, compare_refuses)
}

const SEED: Bootstrap = Bootstrap { resamples: 400, seed: 5 };

/// A task of `n` questions with four choices, where the first `right` are answered right.
fn task(name: &str, n: usize, right: impl Fn(usize) -> bool) -> TaskOutcome {
    let outcome = |item: usize| {
        let answer = item % 4;
        let pick = if right(item) { answer } else { (answer + 1) % 4 };
        let choices = (0..4).map(|choice| ChoiceScore {
            log_likelihood: if choice == pick { -1.25 } else { -3.0 - 0.1 * choice as f64 },
            tokens: 2,
            characters: 7 + choice,
            greedy: choice == pick,
        });
        Outcome {
            item,
            answer: Some(answer),
            target: format!("choice {answer}"),
            pick: Some(pick),
            pick_norm: Some(pick),
            choices: choices.collect(),
            generated: None,
            correct: right(item),
            correct_norm: Some(right(item)),
            asked: Asked::default(),
        }
    };
    TaskOutcome {
        task: name.into(),
        form: Form::MultipleChoice,
        shots: 2,
        chance: 0.25,
        labels: vec![],
        outcomes: (0..n).map(outcome).collect(),
    }
}

/// A cloze and a generation, right in every second item and in every third.
fn texts() -> [TaskOutcome; 2] {
    let make = |name: &str, form: Form, every: usize| {
        let mut made = task(name, 12, |item| item % every == 0);
        (made.form, made.chance) = (form, 0.0);
        for outcome in &mut made.outcomes {
            outcome.choices.truncate(usize::from(form == Form::Cloze));
            (outcome.answer, outcome.pick, outcome.pick_norm) = (None, None, None);
            outcome.correct_norm = None;
            outcome.generated = (form == Form::Generation).then(|| "Zürich\n".into());
        }
        made
    };
    [make("last", Form::Cloze, 2), make("sums", Form::Generation, 3)]
}

fn near(have: f64, want: f64) -> bool {
    (have - want).abs() < 1e-12
}

fn share_by_hand() -> Result<(), Failed> {
    // (0.55 - 0.25) / (0.85 - 0.25) = 1/2 and (0.75 - 0.25) / (0.65 - 0.25) = 5/4; mean 7/8.
    let parent = [
        task("one", 100, |i| i < 85),
        task("two", 40, |i| i < 26),
        task("guessed", 100, |i| i < 32),
        task("below", 100, |i| i < 3),
    ];
    let child = [
        task("two", 40, |i| i < 30),
        task("one", 100, |i| i < 55),
        task("guessed", 100, |i| i < 90),
        task("below", 100, |i| i < 90),
    ];
    let found = compare_tasks(&parent, &child, SEED)?;
    let share = found.share.clone().ok_or("two tasks tell")?;
    let ends = share.interval.ok_or("enough items")?;
    assert!(
        near(share.value, 0.875)
            && share.tasks == ["one", "two"]
            && found.at_chance == ["guessed", "below"],
        "{found:?}"
    );
    assert!(ends.low < 0.875 && ends.high > 0.875 && ends.high - ends.low < 0.6, "{ends:?}");
    // 0.25 + 2 * sqrt(0.34 * 0.66 / 99) = 0.3452: 34 of 100 is within two standard errors, 35 is not.
    for (right, told) in [(34, false), (35, true)] {
        let parent = [task("edge", 100, |i| i < right)];
        let found = compare_tasks(&parent, &parent, SEED)?;
        assert!(found.share.is_some() == told, "{right}: {found:?}");
        if let Some(share) = found.share {
            let interval = share.interval.ok_or("enough items")?;
            assert!(share.value == 1.0 && interval.low == 1.0 && interval.high == 1.0, "{share:?}");
        }
    }
    Ok(())
}

fn pairs_are_items() -> Result<(), Failed> {
    let parent = [task("t", 60, |i| i % 3 != 0), task("alone", 9, |_| true)];
    let mut child = [task("t", 50, |i| i % 5 != 0), task("new", 9, |_| true)];
    child[0].outcomes.reverse();
    let found = compare_tasks(&parent, &child, SEED)?;
    let t = &found.tasks[0];
    // Of 50 items 17 are multiples of 3, 10 of 5, 4 of both.
    assert!(
        (t.n, t.unpaired, t.acc.lost, t.acc.gained) == (50, 10, 6, 13)
            && near(t.acc.parent, 0.66)
            && near(t.acc.child, 0.8)
            && near(t.acc.difference, 0.14)
            && near(t.acc.parent_stderr, (0.66f64 * 0.34 / 49.0).sqrt())
            && found.unpaired == ["alone", "new"],
        "{found:?}"
    );
    let ends = t.acc.interval.ok_or("enough items")?;
    assert!(ends.low < 0.14 && 0.14 < ends.high, "{ends:?}");
    child[0].shots = 0;
    let shots = compare_tasks(&parent, &child, SEED).map_err(|error| error.to_string());
    assert!(shots.is_err_and(|e| e.contains("task t") && e.contains("shots: 2")), "other shots");
    child[0].shots = 2;
    child[0].outcomes[0].target = "other".into();
    let other = compare_tasks(&parent, &child, SEED).map_err(|error| error.to_string());
    assert!(other.is_err_and(|e| e.contains("item 49") && e.contains("other")), "another question");
    Ok(())
}

fn lm_eval_results() -> Result<(), Failed> {
    let [cloze, sums] = texts();
    let tasks = [task("t", 40, |i| i < 30), cloze, sums];
    let origin = Origin { model: "m.gguf".into(), date: 1.5, seed: 3 };
    let json = results(&tasks, &origin);
    for key in [
        "results",
        "group_subtasks",
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
    ] {
        let names: Vec<_> = json[key].as_object().ok_or(key)?.keys().collect();
        assert!(names == ["t", "last", "sums"], "{key}: {names:?}");
    }
    let number = |task: &str, key: &str| json["results"][task][key].as_f64().unwrap_or(f64::NAN);
    assert!(
        json["results"]["t"]["alias"] == "t"
            && near(number("t", "acc,none"), 0.75)
            && near(number("t", "acc_stderr,none"), (0.75f64 * 0.25 / 39.0).sqrt(),)
            && near(number("t", "acc_norm,none"), 0.75)
            && near(number("last", "acc,none"), 0.5)
            && number("last", "perplexity,none") > 1.0
            && near(number("sums", "exact_match,none"), 4.0 / 12.0)
            && json["results"]["last"]["acc_norm,none"].is_null()
            && json["higher_is_better"]["last"] == json!({"acc": true, "perplexity": false})
            && json["configs"]["last"]["metric_list"][1]["higher_is_better"] == false
            && json["n-shot"]["t"] == 2
            && json["n-samples"]["t"]["effective"] == 40
            && json["configs"]["t"]["output_type"] == "multiple_choice"
            && json["config"]["model_args"] == "pretrained=m.gguf",
        "{json:#}"
    );
    Ok(())
}

fn samples_return() -> Result<(), Failed> {
    let [cloze, sums] = texts();
    let mut two = task("two choices", 12, |i| i != 4);
    two.form = Form::Classification;
    two.labels = vec!["yes".into(), "no".into()];
    two.chance = 0.5;
    for outcome in &mut two.outcomes {
        let answer = outcome.item % 2;
        outcome.choices.truncate(2);
        (outcome.answer, outcome.pick, outcome.pick_norm) = (Some(answer), Some(1 - answer), None);
        outcome.correct_norm = None;
    }
    let mut again = task("t", 40, |i| i < 20);
    again.shots = 8;
    let tasks = [task("t", 40, |i| i < 30), cloze, sums, two, again];
    let both = compare_tasks(&tasks, &tasks, SEED)?;
    assert!(both.tasks[4].shots == 8, "{both:?}");
    let text = samples(&tasks);
    let back = read_samples(Path::new("s.jsonl"), &text)?;
    assert_eq!(back, tasks);
    let line: Value = serde_json::from_str(text.lines().nth(1).ok_or("a second line")?)?;
    assert!(
        line["doc_id"] == 1
            && line["target"] == "1"
            && line["acc"] == 1.0
            && line["filtered_resps"][1] == json!(["-1.25", "True"])
            && line["resps"][1] == json!([["-1.25", "True"]])
            && line["metrics"] == json!(["acc", "acc_norm"]),
        "{line}"
    );
    Ok(())
}

/// What lm-evaluation-harness's own scripts look for.
fn lm_eval_samples() -> Result<(), Failed> {
    let [mut cloze, _] = texts();
    let doc = json!({"text": "The way to say \"no\""}).as_object().cloned();
    let doc = doc.ok_or("an object")?;
    let arguments = vec![("The way to say".into(), json!(" \"no\""))];
    cloze.outcomes[0].asked = Asked { doc, arguments, cut: 0 };
    let text = samples(&[cloze]);
    let line: Value = serde_json::from_str(text.lines().next().ok_or("a line")?)?;
    // The hash is of json.dumps(doc, indent=2, ensure_ascii=False).
    let hash = crate::program::sha256("{\n  \"text\": \"The way to say \\\"no\\\"\"\n}".as_bytes());
    assert!(
        line["doc"]["text"] == "The way to say \"no\""
            && line["arguments"]["gen_args_0"]
                == json!({"arg_0": "The way to say", "arg_1": " \"no\""})
            && line["target"] == " \"no\""
            && line["doc_hash"] == hash
            && line["prompt_hash"] == crate::program::sha256(b"The way to say")
            && line["target_hash"] == crate::program::sha256(b" \"no\"")
            && line["metrics"] == json!(["acc", "perplexity"])
            && line["perplexity"] == -1.25,
        "{line:#}"
    );
    let back = read_samples(Path::new("s.jsonl"), &text)?;
    assert!(samples(&back) == text, "written again otherwise");
    Ok(())
}

/// Lines of lm-evaluation-harness for a last word, a generation behind two filters, and choices with their lengths.
fn predictions_by_lm_eval() -> Result<(), Failed> {
    let path = Path::new("p.jsonl");
    let [cloze, sums] = texts();
    let line = |item: usize, greedy: &str| {
        format!(
            "{{\"doc_id\": {item}, \"doc\": {{}}, \"target\": \" choice {}\", \"filtered_resps\": [[\"-2.5\", \"{greedy}\"]], \"acc\": 0}}\n",
            item % 4
        )
    };
    let text = line(0, "True") + &line(1, "False");
    let found = read_predictions(path, &text, std::slice::from_ref(&cloze))?;
    let right: Vec<_> =
        found[0].outcomes.iter().map(|o| (o.correct, o.choices[0].log_likelihood)).collect();
    assert_eq!(right, [(true, -2.5), (false, -2.5)]);
    let other = text.replacen("choice 1", "choice 3", 1);
    let error = read_predictions(path, &other, std::slice::from_ref(&cloze))
        .expect_err("another")
        .to_string();
    assert!(error.contains("line 2") && error.contains("choice 3"), "{error}");
    let both = |filter: &str, answer: &str| {
        format!(
            "{{\"doc_id\": 2, \"target\": \"work #### 2\", \"filter\": \"{filter}\", \"filtered_resps\": [\"{answer}\"]}}\n"
        )
    };
    let text = both("strict-match", "choice 2") + &both("flexible-extract", "2");
    let found = read_predictions(path, &text, &[sums])?;
    assert!(found[0].outcomes.len() == 1 && found[0].outcomes[0].correct, "{found:?}");
    // Per character the longest choice is ahead.
    let text = "{\"doc_id\": 3, \"target\": \"3\", \"filtered_resps\": [[\"-1\", \"True\"], [\"-9\", \"False\"], [\"-9\", \"False\"], [\"-1.1\", \"False\"]]}";
    let found = read_predictions(path, text, &[task("t", 4, |_| true)])?;
    let one = &found[0].outcomes[0];
    assert!(
        (one.pick, one.correct, one.pick_norm, one.correct_norm)
            == (Some(0), false, Some(3), Some(true)),
        "{one:?}"
    );
    Ok(())
}

/// One value tells nothing of its error: not zero, but none.
fn one_item_has_no_error() -> Result<(), Failed> {
    let one = [task("t", 1, |_| true)];
    let origin = Origin { model: "m".into(), date: 0.0, seed: 0 };
    let json = results(&one, &origin);
    assert!(json["results"]["t"]["acc_stderr,none"] == "N/A", "{json:#}");
    let figures = json!(lopper::measure::quality::tasks::Figures::of(&one[0]));
    assert!(figures["acc"] == 1.0 && figures["acc_stderr"].is_null(), "{figures}");
    let found = compare_tasks(&one, &one, SEED)?;
    assert!(found.at_chance == ["t"] && json!(found)["tasks"][0]["acc"]["parent_stderr"].is_null());
    let folder = TempDir::new()?;
    let run = succeeds(&folder, &format!("eval {NANO} --task headlines --limit 1"))?;
    assert!(run.out.contains("n/a") && !run.out.contains("0.0000  n/a  0.0000"), "{run}");
    let run = succeeds(
        &folder,
        &format!("eval {NANO} --ppl embedded:heldout-2026 --ctx 2 --max-tokens 2"),
    )?;
    assert!(run.out.contains(" ± n/a (1 tokens scored"), "{run}");
    Ok(())
}

fn predictions_of_others() -> Result<(), Failed> {
    let questions = [task("t", 20, |i| i < 15)];
    let path = Path::new("p.jsonl");
    // Picks, some right; and lm-evaluation-harness's own lines, whose likeliest choice is the pick.
    let mut text: String =
        (0..9).map(|i| format!("{{\"doc_id\": {i}, \"pick\": {}}}\n\n", i % 3)).collect();
    text += r#"{"doc_id": 9, "target": "1", "filtered_resps": [["-4.5", "False"], ["-0.5", "True"], ["-4.0", "False"], ["-9", "False"]], "acc": 1.0}"#;
    let found = read_predictions(path, &text, &questions)?;
    let right: Vec<_> = found[0].outcomes.iter().map(|o| o.correct).collect();
    // i % 3 == i % 4 for 0, 1, 2 only, of 0 to 8.
    let want: Vec<_> = (0..10).map(|i| i < 3 || i == 9).collect();
    assert!(right == want && found[0].outcomes[9].pick == Some(1), "{found:?}");
    let compared = compare_tasks(&questions, &found, SEED)?;
    assert!(compared.tasks[0].n == 10 && compared.tasks[0].unpaired == 10, "{compared:?}");
    let sums = [texts()[1].clone()];
    let text =
        "{\"item\": 2, \"prediction\": \" choice 2 \"}\n{\"item\": 1, \"prediction\": \"no\"}";
    let found = read_predictions(path, text, &sums)?;
    let right: Vec<_> = found[0].outcomes.iter().map(|o| (o.item, o.correct)).collect();
    assert_eq!(right, [(2, true), (1, false)]);
    Ok(())
}

fn bad_answers() -> Result<(), Failed> {
    let questions = [task("t", 4, |_| true), task("u", 4, |_| true)];
    let path = Path::new("p.jsonl");
    let refused = |text: &str, said: &str| {
        let error = read_predictions(path, text, &questions).expect_err(text);
        let (told, code) = (error.to_string(), error.exit_code());
        let all = said.split(" & ").all(|word| told.contains(word));
        assert!(code == 2 && all && !told.contains('\n'), "{text}: {told}");
    };
    refused("", "p.jsonl & no line");
    refused("\n[1]", "line 2 & JSON object");
    let once = "{\"task\": \"t\", \"doc_id\": 0, \"pick\": 1}";
    refused(&format!("{once}\n{once}"), "line 2 & once & item 0");
    let table = r#"
        {"doc_id": 0 => JSON object
        {"doc_id": 0, "pick": 1} => `task` & none
        {"task": "v", "doc_id": 0, "pick": 1} => t, u & found v
        {"task": "t", "doc_id": 4, "pick": 1} => 4 items of t & item 4
        {"task": "t", "doc_id": -1, "pick": 1} => doc_id & -1
        {"task": "t", "doc_id": 0, "pick": 4} => below the 4 choices & 4
        {"task": "t", "doc_id": 0, "pick": "B"} => pick
        {"task": "t", "doc_id": 0} => pick & neither
        {"task": "t", "doc_id": 0, "target": 3, "pick": 1} => target 0 & found 3
        {"task": "t", "doc_id": 0, "filtered_resps": [[1, true]]} => 4 choices & 1
        {"task": "t", "doc_id": 0, "filtered_resps": [["x", true], [1, true], [1, true], [1, true]]} => log-likelihood & x
    "#;
    for (text, said) in rows(table) {
        refused(text, &format!("line 1 & {said}"));
    }
    let good = samples(&questions);
    let table = r#"
        "doc_id":1 => "doc_id":0 => line 2 & item 0 again
        "target":"2" => "target":"9" => line 3 & below the 4 choices
        "acc":1.0 => "acc":0.5 => line 1 & 0 or 1
        "shots":2 => "shots":null => line 1 & `shots`
        "task":"t", =>  => line 1 & --predictions
        "form":"multiple-choice" => "form":"guess" => line 1 & `form`
        "characters":[7,8,9,10] => "characters":[7] => line 1 & 4 responses
        "pick":3 => "pick":7 => line 4 & `pick`
    "#;
    for (from, change) in rows(table) {
        let (to, said) = change.split_once(" => ").ok_or("a text instead, and what is said")?;
        let text = good.replacen(from, to, 1);
        assert!(text != good, "nothing to change: {from}");
        let error = read_samples(path, &text).expect_err(from).to_string();
        let all = said.split(" & ").all(|word| error.contains(word));
        assert!(all, "{from}: {error}");
    }
    Ok(())
}

/// The program on files of answers, without any model.
fn compare_answers() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text);
    write("a.jsonl", samples(&[task("t", 100, |i| i < 85), task("dull", 100, |i| i < 25)]))?;
    write("b.jsonl", samples(&[task("t", 100, |i| i < 70), task("dull", 100, |i| i < 25)]))?;
    let picks: String = (0..100)
        .map(|i| format!("{{\"task\": \"t\", \"item\": {i}, \"pick\": {}}}\n", i % 4))
        .collect();
    write("p.jsonl", picks)?;
    let arguments =
        "compare a.jsonl b.jsonl --predictions p.jsonl --lm-eval r.json --samples s.jsonl";
    let json = succeeds(&folder, &format!("{arguments} --json=-"))?.json()?;
    let number = |path: &str| json.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    assert!(
        near(number("/share/value"), 0.75)
            && near(number("/tasks/0/acc/difference"), -0.15)
            && near(number("/predictions/0/share/value"), 1.25)
            && json["at_chance"] == json!(["dull"])
            && json["summary"]
                .as_str()
                .is_some_and(|words| words.starts_with("75 % of the parent's quality (95 %: ")),
        "{json:#}"
    );
    let results = read_json(folder.path().join("r.json"))?;
    let acc = results["results"]["t"]["acc,none"].as_f64();
    assert!(acc.is_some_and(|acc| near(acc, 0.7)), "{results}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name));
    let samples = read("s.jsonl")?;
    let (mark, rest) = samples.split_once(',').ok_or("a mark")?;
    assert!(mark.starts_with("{\"written_by\":\"lopper"), "{mark}");
    assert_eq!(format!("{{{rest}"), read("b.jsonl")?, "the child's samples");
    let printed = succeeds(&folder, arguments)?.out;
    for words in [
        "t acc (100 items",
        "-15.0 points",
        "[p.jsonl]",
        "within two standard errors of chance: dull",
    ] {
        assert!(printed.contains(words), "no `{words}` in {printed}");
    }
    Ok(())
}

fn compare_refuses() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    std::fs::write(folder.path().join("a.jsonl"), samples(&[task("t", 20, |_| true)]))?;
    std::fs::write(folder.path().join("bad.jsonl"), "{}\n")?;
    let before = snapshot(&folder)?;
    let table = "
        a.jsonl none.jsonl => none.jsonl: cannot read
        a.jsonl bad.jsonl => bad.jsonl: line 1
        a.jsonl NANO => two models, two files of answers
        a.jsonl a.jsonl --ppl embedded:heldout-2026 => a text needs two models
        TINY NANO --predictions a.jsonl => --predictions: expected answers
        TINY NANO --samples s.jsonl => expected answers to tasks
        TINY nobody => nobody
        TINY NANO --ppl none.txt => none.txt: cannot read
        TINY NANO --ctx 1 => --ctx
        a.jsonl a.jsonl --samples no/s.jsonl => no/s.jsonl & cannot write
        a.jsonl a.jsonl --lm-eval . => cannot write
    ";
    for (models, said) in rows(table) {
        let models = models.replace("TINY", TINY).replace("NANO", NANO);
        let run = lopper(&folder, &format!("compare {models} --device cpu"))?;
        run.refused(if said.contains("cannot write") { 4 } else { 2 }, said);
        assert!(run.out.is_empty(), "compare {models}: {run}");
    }
    assert!(snapshot(&folder)? == before, "something was left");
    Ok(())
}
