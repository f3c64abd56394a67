//! Questions as published: a small sample of each layout, and broken ones.

use std::path::PathBuf;

use libtest_mimic::Trial;
use lopper::data::{Item, Scoring, Task, read_task};
use lopper::error::Error;

pub fn trials() -> Vec<Trial> {
    suite!("task_layouts":
        published, labels_and_words, templates, malformed, undecided, broken_task_files)
}

/// Files of a name and content each, in a folder of their own.
fn folder(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().expect("a folder");
    let paths = files.iter().map(|(name, bytes)| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    });
    let paths = paths.collect();
    (folder, paths)
}

fn read(name: &str, text: &str) -> Task {
    let (_folder, paths) = folder(&[(name, text.as_bytes())]);
    read_task(&paths[0].to_string_lossy(), None).expect("a task")
}

fn check(item: &Item, query: &str, choices: &[&str], answer: usize) {
    let texts: Vec<&str> = item.choices.iter().map(|c| c.text.as_str()).collect();
    assert_eq!((item.query.as_str(), texts.as_slice(), item.answer), (query, choices, answer));
}

fn published() {
    let mmlu = read(
        "abstract_algebra_test.csv",
        "\"Find 2 + 2, \"\"please\"\".\",3,4,5,\"6, or 7\",B\nWhat?,a,b,c,d,D\n",
    );
    let query = "Find 2 + 2, \"please\".\nA. 3\nB. 4\nC. 5\nD. 6, or 7\nAnswer:";
    check(&mmlu.items[0], query, &["A", "B", "C", "D"], 1);
    assert!(mmlu.items[0].front.ends_with("about abstract algebra.\n\n"));
    let mmlu = read(
        "m.jsonl",
        "{\"question\":\"Q?\",\"choices\":[\"x\",\"y\"],\"answer\":1,\"subject\":\"high_school_art\"}\n",
    );
    check(&mmlu.items[0], "Q?\nA. x\nB. y\nAnswer:", &["A", "B"], 1);
    let hellaswag = read(
        "h.jsonl",
        "{\"ind\":1,\"activity_label\":\"Baking\",\"ctx_a\":\"A man [sub] stirs.\",\"ctx_b\":\"the Pot\",\"ctx\":\"x\",\"endings\":[\"boils [title] over  now.\",\"[step] falls.\"],\"label\":\"1\"}\n",
    );
    check(&hellaswag.items[0], "Baking: A man stirs. The pot", &["boils. over now.", " falls."], 1);
    // As Python's str.capitalize: title case, then lower case.
    let capitals = [
        ("\u{fb01}nally THE", "Finally the"),
        ("\u{1c6}ungla", "\u{1c5}ungla"),
        ("\u{df}A", "Ssa"),
        ("\u{149}A", "\u{2bc}Na"),
        ("\u{1fb3}", "\u{1fbc}"),
        ("\u{1fb2}", "\u{1fba}\u{345}"),
        ("\u{10d0}\u{10d1}", "\u{10d0}\u{10d1}"),
        ("\u{39f}\u{394}\u{39f}\u{3a3}", "\u{39f}\u{3b4}\u{3bf}\u{3c2}"),
    ];
    for (text, capital) in capitals {
        let line =
            format!("{{\"ctx_a\":\"A.\",\"ctx_b\":\"{text}\",\"endings\":[\"x\"],\"label\":0}}\n");
        assert_eq!(read("h.jsonl", &line).items[0].query, format!("A. {capital}"));
    }
    let arc = read(
        "arc.jsonl",
        "{\"id\":\"M_1\",\"question\":\"Why?\",\"choices\":{\"text\":[\"a\",\"b\",\"c\"],\"label\":[\"1\",\"2\",\"3\"]},\"answerKey\":\"3\"}\n",
    );
    check(&arc.items[0], "Question: Why?\nAnswer:", &["a", "b", "c"], 2);
    let obqa = read(
        "obqa.jsonl",
        "{\"question_stem\":\"The sun is\",\"choices\":{\"text\":[\"hot\",\"cold\"],\"label\":[\"A\",\"B\"]},\"answerKey\":\"A\"}\n",
    );
    check(&obqa.items[0], "The sun is", &["hot", "cold"], 0);
    let logiqa = read(
        "Test.txt",
        "\nc\nAll men are mortal.Socrates is a man.\nWhich follows?\nA.None.\nB.One\nC.Two\nD.Three\n\na\nP\nQ\nA.1\nB.2\nC.3\nD.4\n",
    );
    let query = "Passage: All men are mortal. Socrates is a man.\nQuestion: Which follows?\nChoices:\nA. None.\nB. One\nC. Two\nD. Three\nAnswer:";
    check(&logiqa.items[0], query, &["None.", "One", "Two", "Three"], 2);
    assert_eq!(logiqa.items.len(), 2);
    let logiqa = read(
        "l.jsonl",
        "{\"context\":\"C\",\"query\":\"Q\",\"options\":[\"x\",\"y\"],\"correct_option\":1}\n",
    );
    check(
        &logiqa.items[0],
        "Passage: C\nQuestion: Q\nChoices:\nA. x\nB. y\nAnswer:",
        &["x", "y"],
        1,
    );
    let piqa = "{\"goal\":\"Open a jar\",\"sol1\":\"turn\",\"sol2\":\"push\"}\n";
    let (_folder, paths) =
        folder(&[("valid.jsonl", piqa.as_bytes()), ("valid-labels.lst", b"1\n")]);
    let task = read_task(&paths[0].to_string_lossy(), None).expect("PIQA");
    check(&task.items[0], "Question: Open a jar\nAnswer:", &["turn", "push"], 1);
    let wino = read(
        "w.jsonl",
        "{\"sentence\":\"Ann beat Eve since _ was quick.\",\"option1\":\"Ann\",\"option2\":\"Eve\",\"answer\":\"2\"}\n",
    );
    let item = &wino.items[0];
    assert_eq!(item.query_of(1), "Ann beat Eve since Eve");
    assert_eq!((item.choices[0].text.as_str(), item.answer), ("was quick.", 1));
    assert_eq!(item.example(" "), "Ann beat Eve since Eve was quick.");
}

fn labels_and_words() {
    let boolq =
        read("b.jsonl", "{\"question\":\"is it so\",\"passage\":\"It is.\",\"answer\":true}\n");
    check(&boolq.items[0], "It is.\nQuestion: is it so?\nAnswer:", &["no", "yes"], 1);
    assert_eq!(boolq.scoring, Scoring::Labels(vec!["no".into(), "yes".into()]));
    let lambada = read("lambada.jsonl", "{\"text\":\"She gave him the book\"}\n");
    check(&lambada.items[0], "She gave him the", &["book"], 0);
    assert_eq!(lambada.scoring, Scoring::LastWord);
    assert_eq!(lambada.items[0].example(&lambada.example_delimiter), "She gave him the  book");
    let (_folder, paths) = folder(&[("plain.txt", b"one two three\nfour five\n")]);
    let plain = read_task(&format!("lambada:{}", paths[0].display()), None).expect("plain LAMBADA");
    assert_eq!(plain.items[1].target(), "five");
    // The published file is Latin-1: E9 is an e with an acute accent.
    let (_folder, paths) =
        folder(&[("all.txt", b"Nestl\xe9 grew@positive\nIt @ 5 fell .@negative\n")]);
    let bank = read_task(&paths[0].to_string_lossy(), None).expect("PhraseBank");
    check(
        &bank.items[0],
        "Sentence: Nestl\u{e9} grew\nSentiment:",
        &["negative", "neutral", "positive"],
        2,
    );
    assert_eq!(bank.items[1].answer, 0);
    let tweets = read("t.csv", "text,label\n\"$AAPL, up\",1\nflat,2\n");
    check(
        &tweets.items[0],
        "Sentence: $AAPL, up\nSentiment:",
        &["bearish", "bullish", "neutral"],
        1,
    );
}

fn templates() {
    let csv = "q,good,bad,right\nSky?,blue,green,B\n";
    let toml = "data = \"d.csv\"\nname = \"sky\"\nprompt = \"{{ q }}\\nA:\"\nchoices = [\"{{ bad }}\", \"{{ good }}\"]\nanswer = \"{{ right }}\"\nanswer_is = \"letter\"\n";
    let (_folder, paths) = folder(&[("t.toml", toml.as_bytes()), ("d.csv", csv.as_bytes())]);
    let task = read_task(&paths[0].to_string_lossy(), None).expect("a task file");
    assert_eq!(task.name, "sky");
    check(&task.items[0], "Sky?\nA:", &["green", "blue"], 1);
    let toml = "data = \"d.jsonl\"\nshots = \"d.jsonl\"\nform = \"classification\"\nprompt = \"{{ t }} is\"\nchoices = [\"good\", \"bad\"]\nanswer = \"{{ l }}\"\n";
    let lines = "{\"t\":\"x\",\"l\":\"bad\"}\n{\"t\":\"y\",\"l\":\"good\"}\n";
    let (_folder, paths) = folder(&[("t.toml", toml.as_bytes()), ("d.jsonl", lines.as_bytes())]);
    let task = read_task(&paths[0].to_string_lossy(), None).expect("a task file");
    assert_eq!(task.scoring, Scoring::Labels(vec!["good".into(), "bad".into()]));
    assert_eq!((task.items[0].answer, task.pool.map(|pool| pool.len())), (1, Some(2)));
    let toml = "data = \"d.jsonl\"\nlayout = \"lambada\"\n";
    let (_folder, paths) =
        folder(&[("t.toml", toml.as_bytes()), ("d.jsonl", b"{\"text\":\"a b\"}")]);
    let task = read_task(&paths[0].to_string_lossy(), None).expect("a layout by name");
    assert_eq!(task.items[0].target(), "b");
}

/// The message of a broken file: it names the file, the line and the reason, on one line.
fn message(name: &str, bytes: &[u8]) -> String {
    let (_folder, paths) = folder(&[(name, bytes)]);
    let error = read_task(&paths[0].to_string_lossy(), None).expect_err("an error");
    assert_eq!(error.exit_code(), 2, "{error}");
    let text = error.to_string();
    assert!(text.contains(name) && !text.contains('\n'), "{text}");
    text
}

fn malformed() {
    let good = "{\"question\":\"Q?\",\"choices\":[\"x\",\"y\"],\"answer\":1}\n";
    let cases: &[(&str, String, &[&str])] = &[
        ("cut.jsonl", format!("{good}{}", &good[..30]), &["line 2", "JSON"]),
        ("range.jsonl", format!("{good}\n{}", good.replace(":1}", ":2}")), &["line 3", "from 0 to 1", "found 2"]),
        ("negative.jsonl", good.replace(":1}", ":-1}"), &["line 1", "found -1"]),
        ("none.jsonl", format!("{good}{{\"question\":\"Q?\",\"choices\":[],\"answer\":0}}\n"), &["line 2", "choices"]),
        ("field.jsonl", format!("{good}{{\"question\":\"Q?\",\"answer\":0}}\n"), &["line 2", "`choices`"]),
        ("empty.jsonl", String::new(), &["at least one question"]),
        ("letter.csv", "q,1,2,3,4,A\nq,1,2,3,4,B\nq,1,2,3,4,C\nq,1,2,3,4,E\n".into(), &["line 4", "A to D", "found E"]),
        ("columns.csv", "q,1,2,3,4,A\nq,1,2,3,4,B\nq,1,2,3,4,C\nq,1,2,A\n".into(), &["line 4", "6 columns", "found 4"]),
        ("key.jsonl", "{\"question\":\"Why?\",\"choices\":{\"text\":[\"a\"],\"label\":[\"A\"]},\"answerKey\":\"F\"}".into(), &["line 1", "answerKey", "found F"]),
        ("short.txt", "\na\nP\nQ\nA.1\nB.2\nC.3\nD.4\n\nb\nP\n".into(), &["line 10", "found 2 lines"]),
        ("word.jsonl", "{\"text\":\"two words\"}\n{\"text\":\"one\"}\n".into(), &["line 2", "two words or more"]),
        ("blank.jsonl", "{\"sentence\":\"No gap.\",\"option1\":\"a\",\"option2\":\"b\",\"answer\":\"1\"}".into(), &["line 1", "blank"]),
        ("label.csv", "text,label\nfine,1\nbad,3\n".into(), &["line 3", "found 3"]),
        ("bank.txt", "a@positive\nb@negative\nc@neutral\nd@good\n".into(), &["line 4", "found good"]),
    ];
    for (name, text, parts) in cases {
        let found = message(name, text.as_bytes());
        for part in *parts {
            assert!(found.contains(part), "{name}: {found} has no {part}");
        }
    }
    let found = message("bytes.jsonl", b"{\"text\":\"two words\"}\n{\"text\":\"two \xff\"}\n");
    assert!(found.contains("line 2") && found.contains("UTF-8"), "{found}");
    let piqa = b"{\"goal\":\"g\",\"sol1\":\"a\",\"sol2\":\"b\"}\n";
    let (_folder, paths) = folder(&[("valid.jsonl", piqa)]);
    match read_task(&paths[0].to_string_lossy(), None) {
        Err(Error::Read { path, .. }) if path.ends_with("valid-labels.lst") => {}
        other => panic!("{other:?}"),
    }
}

fn undecided() {
    let both = "{\"question\":{\"stem\":\"S\",\"choices\":[{\"text\":\"a\",\"label\":\"A\"},{\"text\":\"b\",\"label\":\"B\"}]},\"answerKey\":\"B\"}\n";
    let found = message("raw.jsonl", both.as_bytes());
    assert!(found.contains("arc:FILE") && found.contains("openbookqa:FILE"), "{found}");
    let (_folder, paths) = folder(&[("raw.jsonl", both.as_bytes())]);
    for (layout, query) in [("arc", "Question: S\nAnswer:"), ("openbookqa", "S")] {
        let task = read_task(&format!("{layout}:{}", paths[0].display()), None).expect("a layout");
        check(&task.items[0], query, &["a", "b"], 1);
    }
    let found = message("novel.txt", b"It was a dark and stormy night.\n");
    assert!(found.contains(".toml"), "{found}");
    match read_task("no-such-task", None) {
        Err(Error::Argument { expected, .. }) => assert!(expected.contains("mmlu-mini")),
        other => panic!("{other:?}"),
    }
}

fn broken_task_files() {
    let prompt = "data = \"d.jsonl\"\nprompt = \"{{ q }}\"\n";
    let choices = format!("{prompt}choices = [\"{{{{ a }}}}\", \"{{{{ b }}}}\"]\n");
    let cases: &[(String, &str)] = &[
        ("promt = \"x\"\ndata = \"d.jsonl\"\n".into(), "promt"),
        ("prompt = \"x\"\n".into(), "data"),
        (prompt.into(), "`choices`"),
        (choices.clone(), "`answer`"),
        (format!("{choices}answer = \"{{{{ n }}}}\"\n"), "from 0 to 1"),
        (format!("{choices}answer = \"{{{{ missing }}}}\"\n"), "fields: q, a, b, n"),
        (format!("{prompt}form = \"generation\"\n"), "`target`"),
        (
            format!("{prompt}form = \"generation\"\ntarget = \"x\"\nanswer_pattern = \"(\"\n"),
            "regular expression",
        ),
        (format!("{choices}answer = \"0\"\nmax_tokens = 3\n"), "generation"),
        ("data = \"d.jsonl\"\nlayout = \"nonsense\"\n".into(), "hellaswag"),
    ];
    for (toml, part) in cases {
        let line = b"{\"q\":\"Q\",\"a\":\"x\",\"b\":\"y\",\"n\":2}\n";
        let (_folder, paths) = folder(&[("t.toml", toml.as_bytes()), ("d.jsonl", line)]);
        let error = read_task(&paths[0].to_string_lossy(), None).expect_err("an error");
        assert!(error.to_string().contains(part), "{error} has no {part}");
        assert_eq!(error.exit_code(), 2);
    }
}
