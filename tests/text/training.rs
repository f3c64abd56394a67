//! Training data: what of an example is scored, how examples become rows, in which order rows come, and broken files.

use std::collections::{HashMap, HashSet};

use clap::{CommandFactory, Parser};
use libtest_mimic::{Failed, Trial};
use lopper::data::training::{Batch, Dataset, Examples, Position};
use lopper::data::{read_task, read_text};
use lopper::error::{Error, Result as Outcome};
use lopper::measure::quality::tasks::encode;
use lopper::model::Checkpoint;
use lopper::text::Tokenizer;
use serde_json::json;

pub fn trials() -> Vec<Trial> {
    suite!("training":
        rows_of_a_text, headlines_as_they_are_evaluated, forms, other_sources, conversations, packing, long_examples,
        nothing_is_in_both_parts, orders, goes_on_from_any_position, mixes, flags, broken_rows, broken_datasets, broken_positions)
}

const TRAIN: &str = "assets/tasks/headlines_train.jsonl";

fn tokenizer() -> Tokenizer {
    Checkpoint::open("embedded:tiny-llama")
        .and_then(|model| model.tokenizer())
        .expect("a tokenizer")
}

/// In the order of the file, nothing kept apart.
fn plain(data: &[&str], length: usize) -> Dataset {
    let data = data.iter().map(|source| source.to_string()).collect();
    Dataset { data, length, held_out: 0.0, shuffle: false, ..Dataset::default() }
}

fn read(dataset: &Dataset) -> Examples {
    Examples::read(dataset, &tokenizer(), 7).expect("a dataset")
}

/// A file of this name, in a folder of its own.
fn file(name: &str, text: impl AsRef<[u8]>) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("a file");
    let path = path.to_string_lossy().into_owned();
    (folder, path)
}

/// All rows of the first epoch.
fn epoch(examples: &Examples) -> Batch {
    examples.batch(&examples.start(), examples.rows_per_epoch()).expect("an epoch").0
}

fn rows(batch: &Batch) -> Vec<&[u32]> {
    batch.ids.chunks(batch.length).collect()
}

/// Rows of one example each: the tokens of each up to its EOS, and the text of those that are scored.
fn examples_of(batch: &Batch, tokenizer: &Tokenizer) -> Vec<(Vec<u32>, String)> {
    let rows = rows(batch).into_iter().zip(batch.scored.chunks(batch.length));
    rows.map(|(ids, scored)| {
        let eos = ids.iter().rposition(|id| tokenizer.is_eos(*id)).expect("an EOS");
        let targets: Vec<u32> =
            ids.iter().zip(scored).filter(|(_, scored)| **scored).map(|(id, _)| *id).collect();
        assert!(!scored[0] && scored[eos + 1..].iter().all(|scored| !scored), "{scored:?}");
        (ids[..=eos].to_vec(), tokenizer.decode(&targets, false).expect("text"))
    })
    .collect()
}

fn rows_of_a_text() -> Result<(), Failed> {
    let tokens = tokenizer().encode(&read_text("embedded:calibration")?, false)?;
    let dataset = Dataset { held_out: 0.1, ..plain(&["embedded:calibration"], 256) };
    let examples = read(&dataset);
    let whole = tokens.len() / 256;
    let held = whole / 10;
    let batch = epoch(&examples);
    assert_eq!(examples.rows_per_epoch(), whole - held);
    assert_eq!(examples.tokens_per_epoch(), (whole - held) * 256);
    assert_eq!(batch.ids, tokens[..(whole - held) * 256]);
    for (place, scored) in batch.scored.iter().enumerate() {
        assert_eq!(*scored, place % 256 != 0);
    }
    let apart = examples.held_out(3);
    assert_eq!(apart.iter().map(|batch| batch.sequences).sum::<usize>(), held);
    assert!(apart.iter().all(|batch| batch.ids.len() == batch.sequences * 256));
    let apart: Vec<u32> = apart.into_iter().flat_map(|batch| batch.ids).collect();
    assert_eq!(apart, tokens[(whole - held) * 256..whole * 256], "the last rows");
    let figures = &examples.figures()[0];
    assert_eq!((figures.rows, figures.held_out, figures.padding), (whole - held, held, 0));
    assert_eq!(figures.scored, (whole - held) * 255);
    Ok(())
}

/// What is learned is what `eval --task headlines` scores, token for token, with EOS behind it.
fn headlines_as_they_are_evaluated() -> Result<(), Failed> {
    let tokenizer = tokenizer();
    let pool = read_task("headlines", None)?.pool.expect("a part to learn from");
    for source in [TRAIN.to_string(), format!("headlines:{TRAIN}"), "embedded:headlines".into()] {
        let dataset = Dataset { pack: false, ..plain(&[&source], 512) };
        let batch = epoch(&read(&dataset));
        assert_eq!(batch.sequences, pool.len());
        let scored = batch.scored.chunks(512);
        for ((item, (ids, _)), scored) in
            pool.iter().zip(examples_of(&batch, &tokenizer)).zip(scored)
        {
            let wanted = encode(&tokenizer, &item.query, &format!(" {}", item.target()), false)?;
            let (context, continuation) = ids[..ids.len() - 1].split_at(wanted.context.len());
            assert_eq!((context, continuation), (&wanted.context[..], &wanted.continuation[..]));
            // The continuation and EOS are targets, and nothing before them.
            let first = scored.iter().position(|scored| *scored);
            assert_eq!(first, Some(wanted.context.len()));
            assert!(scored[wanted.context.len()..ids.len()].iter().all(|scored| *scored));
        }
    }
    Ok(())
}

fn forms() -> Result<(), Failed> {
    let tokenizer = tokenizer();
    let below = "Below is an instruction that describes a task";
    let write = "Write a response that appropriately completes the request.";
    let cases = [
        (json!({"text": "The whole of it"}), "The whole of it".to_string(), None),
        (
            json!({"instruction": "Add.", "input": "1 and 2", "output": "It is 3."}),
            format!(
                "{below}, paired with an input that provides further context. {write}\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\nIt is 3."
            ),
            Some("It is 3."),
        ),
        (
            json!({"instruction": "Speak.", "input": "", "output": "Yes, sir."}),
            format!("{below}. {write}\n\n### Instruction:\nSpeak.\n\n### Response:\nYes, sir."),
            Some("Yes, sir."),
        ),
        (
            json!({"prompt": "The sun is", "completion": " hot today"}),
            "The sun is hot today".into(),
            Some(" hot today"),
        ),
        (
            json!({"prompt": "Who is it? ", "response": "The president"}),
            "Who is it? The president".into(),
            Some(" The president"),
        ),
        (
            json!({"question": "Who?", "answer": "The people"}),
            "Question: Who?\nAnswer: The people".into(),
            Some(" The people"),
        ),
        (
            json!({"text": "Man bites dog", "label": "yes"}),
            "Headline: Man bites dog\nSarcastic: yes".into(),
            Some(" yes"),
        ),
    ];
    let text: String = cases.iter().map(|(row, _, _)| format!("{row}\n")).collect();
    let (_folder, path) = file("forms.jsonl", format!("\u{feff}{text}\n\n"));
    let dataset = Dataset { pack: false, ..plain(&[&path], 256) };
    let eos = tokenizer.token(tokenizer.eos[0]).expect("a token");
    let found = epoch(&read(&dataset));
    for ((row, whole, response), (ids, scored)) in cases.iter().zip(examples_of(&found, &tokenizer))
    {
        assert_eq!(tokenizer.decode(&ids, false)?, format!("{whole}{eos}"), "{row}");
        match response {
            Some(response) => {
                let behind = scored.strip_suffix(&eos).expect("EOS is scored");
                assert!(behind.trim_start() == response.trim_start(), "{row}: {behind:?}");
            }
            None => assert!(format!("{whole}{eos}").ends_with(&scored), "{row}: {scored}"),
        }
    }
    // Without a mask on prompts all but the first token is scored.
    let open = epoch(&read(&Dataset { mask_prompt: false, ..dataset.clone() }));
    assert_eq!(found.ids, open.ids);
    let lengths = examples_of(&open, &tokenizer).into_iter().map(|(ids, _)| ids.len() - 1);
    assert_eq!(open.targets(), lengths.sum::<usize>());
    // The same as a table.
    let (_folder, path) = file(
        "forms.csv",
        "question,answer\nWho?,The people\n\"Why, then?\",\"Because \"\"so\"\"\"\n",
    );
    let found = epoch(&read(&Dataset { data: vec![path], ..dataset }));
    let found = examples_of(&found, &tokenizer);
    let texts: Vec<String> =
        found.iter().map(|(ids, _)| tokenizer.decode(ids, true)).collect::<Outcome<_>>()?;
    assert_eq!(
        texts,
        ["Question: Who?\nAnswer: The people", "Question: Why, then?\nAnswer: Because \"so\""]
    );
    Ok(())
}

/// Files that tasks are read from: the prompt is the task's.
fn other_sources() -> Result<(), Failed> {
    let tokenizer = tokenizer();
    let (folder, data) = file("sent.csv", "text,label\nStocks rose,1\nBonds fell,0\n");
    let task = folder.path().join("mood.toml");
    let text = "form = \"classification\"\ndata = \"sent.csv\"\nprompt = \"{{ text }} is\"\nchoices = [\"bad\", \"good\"]\nanswer = \"{{ ['bad', 'good'][label | int] }}\"\n";
    std::fs::write(&task, text).expect("a file");
    let sources = [
        (format!("twitter-financial:{data}"), "Sentence: Stocks rose\nSentiment: bullish"),
        (task.to_string_lossy().into_owned(), "Stocks rose is good"),
    ];
    for (source, wanted) in sources {
        let found = epoch(&read(&Dataset { pack: false, ..plain(&[&source], 64) }));
        let (ids, _) = examples_of(&found, &tokenizer).swap_remove(0);
        assert_eq!(tokenizer.decode(&ids, true)?, wanted, "{source}");
    }
    // A name with an @ and no number behind it, and a text without an end to its name.
    let speech = read_text("embedded:heldout-2026")?;
    let (_folder, path) = file("speech@home", &speech);
    let found = read(&plain(&[&path], 256));
    assert_eq!(found.rows_per_epoch(), tokenizer.encode(&speech, false)?.len() / 256);
    assert!(found.held_out(4).is_empty());
    Ok(())
}

const CHATML: &str = "{% for m in messages %}{{ '[' + m.role + ']' + m.content + eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}";

fn conversations() -> Result<(), Failed> {
    let mut tokenizer = tokenizer();
    tokenizer.chat_template = Some(CHATML.into());
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let first = json!({"messages": [
        turn("system", "Be short."), turn("user", "Who are you?"), turn("assistant", "The president."),
        turn("user", "Où est-ce?"), turn("assistant", "Là-bas — là."), turn("user", "Good.")
    ]});
    let second = json!({"messages": [turn("user", "Go."), turn("assistant", "I go.")]});
    let (_folder, path) = file("chat.jsonl", format!("{first}\n{second}\n"));
    let dataset = Dataset { pack: false, ..plain(&[&path], 128) };
    let found = epoch(&Examples::read(&dataset, &tokenizer, 7)?);
    let eos = tokenizer.token(tokenizer.eos[0]).expect("a token");
    let rows: Vec<_> = rows(&found).into_iter().zip(found.scored.chunks(128)).collect();
    let text = |place: usize, only: bool| {
        let (ids, scored) = rows[place];
        let ids: Vec<u32> = ids
            .iter()
            .zip(scored)
            .filter(|(_, scored)| !only || **scored)
            .map(|(id, _)| *id)
            .collect();
        tokenizer.decode(&ids, false).expect("text")
    };
    let pad = tokenizer.token(tokenizer.pad.unwrap_or(tokenizer.eos[0])).expect("a token");
    let whole = text(0, false);
    let whole = whole.trim_end_matches(pad.as_str());
    // The last turn is no response, so EOS of the template ends the example, and no second one stands behind it.
    let wanted = format!(
        "[system]Be short.{eos}\n[user]Who are you?{eos}\n[assistant]The president.{eos}\n[user]Où est-ce?{eos}\n[assistant]Là-bas — là.{eos}\n[user]Good.{eos}\n"
    );
    assert_eq!(whole, wanted);
    assert_eq!(text(0, true), format!("The president.{eos}\nLà-bas — là.{eos}\n"));
    assert_eq!(text(1, true), format!("I go.{eos}\n"));

    // A template that shows an earlier answer otherwise once more follows cannot be learned from.
    tokenizer.chat_template = Some(
        "{% for m in messages %}{{ m.role }}: {% if loop.last %}{{ m.content }}{% else %}{{ m.content | upper }}{% endif %}; {% endfor %}".into(),
    );
    let Err(error) = Examples::read(&dataset, &tokenizer, 7) else { panic!("a shifting template") };
    assert!(
        error.to_string().contains("line 1") && error.to_string().contains("template"),
        "{error}"
    );
    tokenizer.chat_template = None;
    let Err(error) = Examples::read(&dataset, &tokenizer, 7) else { panic!("no template") };
    assert!(error.to_string().contains("chat_template"), "{error}");
    Ok(())
}

fn packing() {
    let tokenizer = tokenizer();
    let alone = epoch(&read(&Dataset { pack: false, ..plain(&[TRAIN], 512) }));
    let alone: Vec<Vec<u32>> =
        examples_of(&alone, &tokenizer).into_iter().map(|(ids, _)| ids).collect();
    let examples = read(&plain(&[TRAIN], 512));
    let batch = epoch(&examples);
    let fill = tokenizer.pad.unwrap_or(tokenizer.eos[0]);
    // The rule, written again: whole examples in order, as many as fit.
    let mut wanted: Vec<u32> = Vec::new();
    let mut padding = 0;
    for example in &alone {
        let room = 512 - wanted.len() % 512;
        if example.len() > room {
            wanted.resize(wanted.len() + room, fill);
            padding += room;
        }
        wanted.extend(example);
    }
    padding += wanted.len().next_multiple_of(512) - wanted.len();
    wanted.resize(wanted.len().next_multiple_of(512), fill);
    assert_eq!(batch.ids, wanted);
    let figures = &examples.figures()[0];
    assert_eq!((figures.padding, figures.examples), (padding, alone.len()));
    assert_eq!(figures.scored, batch.targets());
    assert!(padding * 5 < batch.ids.len(), "{padding} of {} tokens fill", batch.ids.len());
    // As many targets as the examples have one by one.
    let apart = epoch(&read(&Dataset { pack: false, ..plain(&[TRAIN], 512) }));
    assert_eq!(batch.targets(), apart.targets());
}

/// Examples longer than a row: texts begin at once, prompts begin a row; rows without a target are left out.
fn long_examples() -> Result<(), Failed> {
    let tokenizer = tokenizer();
    let speech = read_text("embedded:heldout-2026")?;
    let words: Vec<&str> = speech.split_whitespace().take(200).collect();
    let long = words.join(" ");
    let short = json!({"text": "Thank you."});
    let (_folder, path) = file("a.jsonl", format!("{short}\n{}\n", json!({"text": long})));
    let batch = epoch(&read(&plain(&[&path], 32)));
    let mut stream = tokenizer.encode("Thank you.", true)?;
    stream.push(tokenizer.eos[0]);
    let begin = stream.len();
    stream.extend(tokenizer.encode(&long, true)?);
    stream.push(tokenizer.eos[0]);
    assert_eq!(batch.ids[..stream.len()], stream, "the long text follows at once");
    assert!(batch.ids.len() - stream.len() < 32);
    for (place, scored) in batch.scored[..stream.len()].iter().enumerate() {
        assert_eq!(*scored, place % 32 != 0 && place != begin, "token {place}");
    }

    let pair = json!({"prompt": long, "completion": " Thank you."});
    let (_folder, path) = file("b.jsonl", format!("{short}\n{pair}\n"));
    let batch = epoch(&read(&plain(&[&path], 32)));
    let (context, continuation) = tokenizer.encode_continuation(&long, " Thank you.", false)?;
    let last = (context.len() + continuation.len() + 1).div_ceil(32) - context.len() / 32;
    assert_eq!(batch.sequences, 1 + last, "of the prompt's rows only those with a target");
    assert_eq!(
        batch.targets() - begin + 1,
        continuation.len() + 1 - usize::from(context.len() % 32 == 0)
    );

    let (_folder, path) = file("c.jsonl", format!("{short}\n{pair}\n"));
    let dataset = Dataset { pack: false, ..plain(&[&path], 32) };
    let error = Examples::read(&dataset, &tokenizer, 7).expect_err("an example over a row");
    let text = error.to_string();
    let tokens = context.len() + continuation.len() + 1;
    assert!(text.contains("line 2") && text.contains(&format!("{tokens} tokens")), "{text}");
    Ok(())
}

fn nothing_is_in_both_parts() {
    let line = |place: usize| json!({"prompt": format!("Number {}", place % 40), "completion": " is even"});
    let text: String = (0..100).map(|place| format!("{}\n", line(place))).collect();
    let (_folder, path) = file("twice.jsonl", text);
    for held_out in [0.05, 0.25, 10.0] {
        let dataset = Dataset { held_out, pack: false, ..plain(&[&path], 32) };
        let examples = read(&dataset);
        let learned = epoch(&examples);
        let apart = examples.held_out(1000);
        let count = if held_out < 1.0 { (100.0 * held_out) as usize } else { 10 };
        assert_eq!(apart[0].sequences, count);
        let learned: HashSet<&[u32]> = rows(&learned).into_iter().collect();
        assert!(rows(&apart[0]).iter().all(|row| !learned.contains(row)));
        assert!(learned.len() + count >= 40, "only copies are left out");
        let other = Examples::read(&dataset, &tokenizer(), 8).expect("a dataset");
        assert_ne!(other.held_out(1000), apart, "another seed keeps others apart");
        assert_eq!(read(&dataset).held_out(1000), apart);
    }
}

fn orders() {
    let dataset = Dataset { shuffle: true, ..plain(&["embedded:heldout-2026"], 64) };
    let examples = read(&dataset);
    let all = examples.rows_per_epoch();
    assert!(all > 100);
    let mut position = examples.start();
    let mut seen: Vec<Vec<u32>> = Vec::new();
    for round in 0..3 {
        let (batch, next) = examples.batch(&position, all).expect("an epoch");
        assert_eq!((next.epoch, next.index), (round + 1, 0));
        let (mut a, mut b) = (rows(&batch), Vec::new());
        let plain = epoch(&read(&Dataset { shuffle: false, ..dataset.clone() }));
        b.extend(rows(&plain));
        assert_ne!(a, b);
        a.sort_unstable();
        b.sort_unstable();
        assert_eq!(a, b, "each row once");
        assert!(!seen.contains(&batch.ids), "every epoch has its own order");
        seen.push(batch.ids);
        position = next;
    }
    assert_eq!(epoch(&read(&dataset)).ids, seen[0]);
    let other = Examples::read(&dataset, &tokenizer(), 8).expect("a dataset");
    assert_ne!(epoch(&other).ids, seen[0]);
    assert_ne!(other.digest(), examples.digest());
    assert_eq!(read(&dataset).digest(), examples.digest());
    assert_ne!(read(&Dataset { length: 65, ..dataset }).digest(), examples.digest());
}

/// Whatever batches were drawn before, and through a file: what follows a position is the same.
fn goes_on_from_any_position() -> Result<(), Failed> {
    let sources = ["embedded:heldout-2026@2", TRAIN, "embedded:heldout-older@0.5"];
    let dataset = Dataset { shuffle: true, ..plain(&sources, 128) };
    let examples = read(&dataset);
    let mut position = examples.start();
    let mut stream: Vec<u32> = Vec::new();
    let mut positions = vec![(0, position.clone())];
    for size in [1, 7, 64, 3, 500, 2, 2, 333, 12] {
        let (batch, next) = examples.batch(&position, size)?;
        stream.extend(batch.ids);
        position = next;
        positions.push((stream.len(), position.clone()));
    }
    let again = read(&dataset);
    for (begin, position) in positions.iter().rev() {
        let text = serde_json::to_string(position).expect("JSON");
        let position: Position = serde_json::from_str(&text).expect("a position");
        let mut found = Vec::new();
        let mut next = position;
        while begin + found.len() < stream.len() {
            let left = (stream.len() - begin - found.len()) / 128;
            let (batch, after) = again.batch(&next, left.min(5))?;
            found.extend(batch.ids);
            next = after;
        }
        assert_eq!(found, stream[*begin..]);
    }
    Ok(())
}

fn mixes() -> Result<(), Failed> {
    let names = ["embedded:heldout-2026", "embedded:heldout-older"];
    let parts: Vec<Examples> = names.iter().map(|name| read(&plain(&[name], 64))).collect();
    let epochs: Vec<Batch> = parts.iter().map(epoch).collect();
    let mut of: HashMap<&[u32], usize> = HashMap::new();
    for (source, part) in epochs.iter().enumerate() {
        of.extend(rows(part).into_iter().map(|row| (row, source)));
    }
    let counts = parts.iter().map(Examples::rows_per_epoch).collect::<Vec<_>>();
    // Without weights: as many as each has, each once, evenly spread.
    let examples = read(&plain(&names, 64));
    let batch = epoch(&examples);
    let (mut mine, all) = (0, counts[0] + counts[1]);
    for (place, row) in rows(&batch).iter().enumerate() {
        mine += usize::from(of[row] == 0);
        let due = (place + 1) as f64 * counts[0] as f64 / all as f64;
        assert!((mine as f64 - due).abs() < 1.0, "{mine} after {place}, due {due}");
    }
    assert_eq!(mine, counts[0]);
    // With weights: 3 to 1, whatever they have, without an end.
    let weighted = [format!("{}@0.75", names[0]), format!("{}@0.25", names[1])];
    let examples = read(&plain(&[&weighted[0], &weighted[1]], 64));
    assert_eq!(examples.figures()[0].share, 0.75);
    let (batch, next) = examples.batch(&examples.start(), 120)?;
    let places: Vec<usize> = rows(&batch).iter().map(|row| of[row]).collect();
    assert_eq!(places.iter().filter(|source| **source == 0).count(), 90);
    assert_eq!(places[..8], [0, 0, 1, 0, 0, 0, 1, 0]);
    assert_eq!(next.drawn, [90, 30]);
    Ok(())
}

/// A dataset's fields are flags, and those left out are as in a recipe that leaves them out.
fn flags() {
    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        dataset: Dataset,
    }
    Command::command().debug_assert();
    let parse = |arguments: &str| {
        let arguments = std::iter::once("tune").chain(arguments.split_whitespace());
        Command::try_parse_from(arguments).map(|command| command.dataset)
    };
    assert_eq!(parse("").ok(), Some(Dataset::default()));
    let found = parse(
        "--data a.jsonl@2 --data b.txt --length 32 --pack false --mask-prompt false --held-out 8 --shuffle false \
         --label-noise 0.25 --noise-seed 3",
    );
    let wanted = Dataset {
        data: vec!["a.jsonl@2".into(), "b.txt".into()],
        length: 32,
        pack: false,
        mask_prompt: false,
        held_out: 8.0,
        shuffle: false,
        label_noise: 0.25,
        noise_seed: Some(3),
    };
    assert_eq!(found.ok(), Some(wanted.clone()));
    let text = toml::to_string(&wanted).expect("TOML");
    assert_eq!(toml::from_str::<Dataset>(&text).ok(), Some(wanted));
    assert!(parse("--pack maybe").is_err() && parse("--length -1").is_err());
}

fn broken_rows() {
    let good = json!({"prompt": "A", "completion": " b"});
    let cases: Vec<(String, &str, &str)> = vec![
        (json!({"body": "x"}).to_string(), "body", "question and answer"),
        ("{}".into(), "none", "fields"),
        (String::new(), "an empty line", "a JSON object"),
        ("  ".into(), "an empty line", "a JSON object"),
        (json!({"text": ""}).to_string(), "empty", "text"),
        (json!({"text": " \n"}).to_string(), "empty", "text"),
        (json!({"text": 3}).to_string(), "3", "a text"),
        (json!({"text": null}).to_string(), "null", "a text"),
        (json!({"prompt": "", "completion": "x"}).to_string(), "empty", "prompt"),
        (json!({"prompt": "x", "completion": ""}).to_string(), "empty", "completion"),
        (json!({"instruction": "x", "output": " "}).to_string(), "empty", "output"),
        (json!({"instruction": "x", "input": [], "output": "y"}).to_string(), "[]", "input"),
        (json!({"question": "x", "answer": ["y"]}).to_string(), "[\"y\"]", "answer"),
        (json!({"text": "x", "label": 2}).to_string(), "2", "LAYOUT:FILE"),
        (json!({"text": "x", "label": "spam"}).to_string(), "spam", ".toml"),
        (json!({"messages": []}).to_string(), "none", "assistant"),
        (json!({"messages": "hello"}).to_string(), "hello", "role"),
        (json!({"messages": [{"role": "user"}]}).to_string(), "user", "content"),
        (
            json!({"messages": [{"role": "assistant", "content": ""}]}).to_string(),
            "empty",
            "content",
        ),
        (json!({"messages": [{"role": "user", "content": "x"}]}).to_string(), "none", "assistant"),
        ("[1]".into(), "sequence", "a JSON object"),
        ("{\"text\": \"x\"".into(), "EOF", "a JSON object"),
        ("not JSON".into(), "expected", "a JSON object"),
    ];
    for (row, found, expected) in cases {
        let (_folder, path) = file("rows.jsonl", format!("{good}\n{row}\n{good}\n"));
        let error = Examples::read(&plain(&[&path], 32), &tokenizer(), 7);
        let error = error.expect_err(&row);
        let text = error.to_string();
        assert!(matches!(error, Error::Malformed { .. }), "{row}: {text}");
        for part in ["rows.jsonl", "line 2", found, expected] {
            assert!(text.contains(part), "{row}: {text} has no {part}");
        }
    }
    let tables = [
        ("text,label\n\"\",yes\n", "empty"),
        ("text,label\na,yes\nb\n", "2 columns"),
        ("text\n", "an example"),
        ("", "a row of column names"),
        ("a,b\n1,2\n", "fields"),
    ];
    for (table, part) in tables {
        let (_folder, path) = file("rows.csv", table);
        let error = Examples::read(&plain(&[&path], 32), &tokenizer(), 7).expect_err(table);
        assert!(error.to_string().contains(part), "{table:?}: {error}");
    }
    for (name, bytes) in
        [("a.jsonl", &b""[..]), ("a.jsonl", b"\n\n"), ("a.jsonl", b"{\"text\": \"\xff\"}")]
    {
        let (_folder, path) = file(name, bytes);
        assert!(Examples::read(&plain(&[&path], 32), &tokenizer(), 7).is_err());
    }
}

fn broken_datasets() -> Result<(), Failed> {
    let good = plain(&["embedded:heldout-2026"], 64);
    let with = |data: &str| Dataset { data: vec![data.into()], ..good.clone() };
    let (_folder, short) = file("short.txt", "A text of a few words.");
    let bad = [
        (Dataset { data: vec![], ..good.clone() }, "none"),
        (Dataset { length: 1, ..good.clone() }, "length"),
        (Dataset { length: usize::MAX, ..good.clone() }, "length"),
        (Dataset { held_out: -0.1, ..good.clone() }, "held_out"),
        (Dataset { held_out: f64::NAN, ..good.clone() }, "held_out"),
        (Dataset { held_out: f64::INFINITY, ..good.clone() }, "held_out"),
        (Dataset { held_out: 1.5, ..good.clone() }, "held_out"),
        (Dataset { held_out: 1e6, ..good.clone() }, "kept apart"),
        (with(""), "SOURCE"),
        (with("@3"), "SOURCE"),
        (with("embedded:heldout-2026@0"), "weight"),
        (with("embedded:heldout-2026@0.0"), "weight"),
        (with("embedded:heldout-2026@9999999"), "weight"),
        (with("embedded:heldout-2026@.5"), "heldout-2026@.5"),
        (with("embedded:nothing"), "embedded:headlines"),
        (with("embedded:cloze"), "none"),
        (with("embedded:mmlu-mini"), "none"),
        (with("nowhere.jsonl"), "nowhere.jsonl"),
        (with("headlines:nowhere.jsonl"), "nowhere.jsonl"),
        (with("src"), "src"),
        (with(&short), "64 tokens or more"),
    ];
    for (dataset, part) in &bad {
        let error = Examples::read(dataset, &tokenizer(), 7);
        let error = error.expect_err(&format!("{dataset:?}"));
        assert!(error.to_string().contains(part), "{dataset:?}: {error}");
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    // Fewer rows than a batch has.
    let examples = read(&good);
    let all = examples.rows_per_epoch();
    for sequences in [0, all + 1, usize::MAX] {
        let error = examples.batch(&examples.start(), sequences).expect_err("a batch");
        assert!(error.to_string().contains(&format!("{all} rows")), "{error}");
    }
    // Recipes.
    let recipe: Dataset =
        serde_json::from_value(json!({"data": ["x@2"], "pack": false})).expect("JSON");
    assert_eq!(recipe, Dataset { data: vec!["x@2".into()], pack: false, ..Dataset::default() });
    assert!(serde_json::from_value::<Dataset>(json!({"lenght": 3})).is_err());
    Ok(())
}

fn broken_positions() {
    let examples = read(&plain(&["embedded:heldout-2026", "embedded:heldout-older"], 64));
    let all = examples.rows_per_epoch() as u64;
    let bad = [
        Position::default(),
        Position { epoch: 0, index: 0, drawn: vec![0] },
        Position { epoch: 0, index: 1, drawn: vec![0, 0] },
        Position { epoch: 0, index: all, drawn: vec![all, 0] },
        Position { epoch: 1, index: 0, drawn: vec![all, all] },
        Position { epoch: u64::MAX, index: 0, drawn: vec![u64::MAX, u64::MAX] },
        Position { epoch: u64::MAX, index: u64::MAX, drawn: vec![1, 0] },
    ];
    for position in bad {
        let error = examples.batch(&position, 1).expect_err("a position");
        assert!(error.to_string().contains("position"), "{error}");
    }
    assert!(
        serde_json::from_value::<Position>(json!({"epoch": -1, "index": 0, "drawn": []})).is_err()
    );
    assert!(serde_json::from_value::<Position>(json!({"epoch": 0, "index": 0})).is_err());
}
