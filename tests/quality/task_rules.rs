//! The rules of tasks: which examples, which tokens, which answer counts, what the figures are.

use libtest_mimic::{Failed, Trial};
use lopper::data::shots::Selection;
use lopper::data::{Item, read_task};
use lopper::device::Device;
use lopper::error::Error;
use lopper::measure::quality::outcome::{Asked, Form, TaskOutcome};
use lopper::measure::quality::tasks::{
    Batching, Event, Figures, Options, Question, Setup, encode, evaluate, score,
};
use lopper::model::{Checkpoint, Compute, Ensemble, Pass, not_finite};

use crate::quality::tasks::{Loaded, OPTIONS};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("task_rules::shots_are_chosen_as_asked", shots_are_chosen),
        Trial::test("task_rules::embedded_sets", embedded_sets),
        Trial::test("task_rules::boundaries_of_tokens", boundaries),
        Trial::test("task_rules::generation_by_exact_match", generation),
        Trial::test("task_rules::too_many_shots", too_many_shots),
        Trial::test("task_rules::figures_by_hand", figures_by_hand),
        Trial::test("task_rules::equal_items_are_no_examples", equal_items),
        Trial::test("task_rules::long_prompts_lose_their_beginning", long_prompts),
        Trial::test("task_rules::where_a_pass_stops_being_finite", stops_being_finite),
    ]
}

fn item(topic: &str, answer: usize) -> Item {
    Item {
        query: topic.into(),
        choices: vec![lopper::data::Choice::new("no"), lopper::data::Choice::new("yes")],
        answer,
        ..Item::default()
    }
}

fn shots_are_chosen() -> Result<(), Failed> {
    use lopper::data::shots::{Bm25, pick, ranked, shuffled};
    let topics = [
        "the cat sat on the mat",
        "ships and trade with China",
        "a treaty on trade",
        "the cat and the dog",
    ];
    let pool: Vec<Item> = topics.iter().map(|topic| item(topic, 0)).collect();
    let bm25 = Bm25::new(&pool);
    // `trade` twice over: the shorter text is the more similar one; no word in common: their own order.
    assert_eq!(bm25.rank("Trade?"), [2, 1, 0, 3]);
    assert_eq!(bm25.rank("CAT, dog"), [3, 0, 1, 2]);
    assert_eq!(ranked(&[0.5, 2.0, 0.5]), [1, 0, 2]);
    let order = shuffled(50, 7);
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert!(sorted == (0..50).collect::<Vec<_>>() && order != sorted);
    assert!(order == shuffled(50, 7) && order != shuffled(50, 8));
    let mut task = read_task("headlines", None)?;
    task.items = pool.clone();
    task.pool = None;
    // Without a pool of its own a question is never its own example; the most similar stands last.
    let shown = pick(&task, 0, &[0, 3, 1, 2], 2, Selection::Bm25)?;
    assert_eq!(shown, [&pool[1], &pool[3]]);
    let shown = pick(&task, 1, &[0, 1, 2, 3], 2, Selection::First)?;
    assert_eq!(shown, [&pool[0], &pool[2]]);
    match pick(&task, 1, &[0, 1, 2, 3], 4, Selection::First) {
        Err(Error::Argument { argument, .. }) if argument == "--shots" => {}
        other => return Err(format!("{other:?}").into()),
    }
    // By the model's own states: a question's nearest is the pool's copy of it with another end.
    let loaded = Loaded::new(&Device::Cpu, "embedded:nano-llama", Compute::F32)?;
    let near = item("ships and trade with Japan", 1);
    task.items = vec![near];
    task.pool = Some(pool);
    for selection in [Selection::Embedding, Selection::Bm25, Selection::Random] {
        let options = Options { shots: 3, selection, ..OPTIONS };
        let outcome = loaded.answers(&task, options)?;
        assert_eq!((outcome.shots, outcome.outcomes.len()), (3, 1));
    }
    Ok(())
}

fn embedded_sets() -> Result<(), Failed> {
    let cloze = read_task("cloze", None)?;
    let again = read_task("cloze", None)?;
    assert!(cloze.items == again.items && cloze.items.len() > 100);
    for item in &cloze.items {
        let words: Vec<&str> = item.query.split(' ').collect();
        assert!((19..90).contains(&words.len()) && item.target().len() >= 4);
        assert!(item.query.to_lowercase().contains(item.target()));
    }
    let mmlu = read_task("mmlu-mini", None)?;
    assert_eq!(mmlu.items.len(), 281);
    let first =
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n";
    assert_eq!(mmlu.items[0].front, first);
    assert!(mmlu.items[0].query.ends_with("\nC. True, False\nD. False, True\nAnswer:"));
    let headlines = read_task("headlines", None)?;
    assert_eq!(headlines.items.len(), 1000);
    assert_eq!(headlines.pool.as_ref().map(Vec::len), Some(10_000));
    // Well above what a guess out of the vocabulary or of the passage's words would give.
    let loaded = Loaded::new(&Device::Cpu, "embedded:tiny-llama", Compute::F32)?;
    let figures = Figures::of(&loaded.answers(&cloze, OPTIONS)?);
    assert!(figures.form == Form::Cloze && figures.acc > 0.1, "{figures:?}");
    Ok(())
}

fn boundaries() -> Result<(), Failed> {
    let tokenizer = Checkpoint::open("embedded:tiny-llama")?.tokenizer()?;
    let bos = tokenizer.bos.ok_or("BOS")?;
    let plain = encode(&tokenizer, "The American", " people", false)?;
    let moved = encode(&tokenizer, "The American ", "people", false)?;
    assert_eq!(plain, moved);
    let whole = tokenizer.encode("The American people", true)?;
    assert_eq!([plain.context.clone(), plain.continuation].concat(), whole);
    let behind = encode(&tokenizer, "The American", " people", true)?;
    assert_eq!(behind.context, [vec![bos], plain.context].concat());
    let empty = encode(&tokenizer, "", " people", false)?;
    assert_eq!(empty.context, [bos]);
    assert!(encode(&tokenizer, "The", "", false).is_err());
    Ok(())
}

fn generation() -> Result<(), Failed> {
    use lopper::data::{Extract, Normalize};
    use lopper::measure::quality::tasks::{extract, normalized};
    let after = Extract::After("####".into());
    assert_eq!(extract("2 + 3 = 5\n#### 1\n#### 5 ", &after)?, "5");
    assert_eq!(extract("no marker", &after)?, "");
    let pattern = Extract::Pattern(r"answer is (-?\d+)".into());
    assert_eq!(extract("the answer is 4, no, the answer is 17.", &pattern)?, "17");
    let all = [Normalize::Case, Normalize::Spaces, Normalize::Punctuation, Normalize::Articles];
    assert_eq!(normalized(" The  Cat, and a dog! ", &all), "cat and dog");
    assert_eq!(normalized("$1,234.", &[Normalize::Numbers]), "1234");
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("sums.jsonl");
    std::fs::write(
        &data,
        "{\"q\":\"two and two\",\"why\":\"Two is two.\",\"a\":\"4\"}\n{\"q\":\"one and two\",\"why\":\"One is one.\",\"a\":\"3\"}\n",
    )?;
    let file = folder.path().join("sums.toml");
    let text = "data = \"sums.jsonl\"\nform = \"generation\"\nprompt = \"Q: {{ q }}\\nA:\"\ntarget = \"{{ a }}\"\nrationale = \"{{ why }} The answer is {{ a }}\"\nanswer_pattern = 'answer is (\\d+)'\nstop = [\"\\n\"]\nmax_tokens = 8\n";
    std::fs::write(&file, text)?;
    let task = read_task(&file.to_string_lossy(), None)?;
    assert_eq!(
        task.items[1].example(&task.delimiter),
        "Q: one and two\nA: One is one. The answer is 3"
    );
    let loaded = Loaded::new(&Device::Cpu, "embedded:nano-llama", Compute::F32)?;
    let outcome = loaded.answers(&task, Options { shots: 1, ..OPTIONS })?;
    assert_eq!(outcome.form, Form::Generation);
    for item in &outcome.outcomes {
        let generated = item.generated.as_ref().ok_or("a text")?;
        assert!(!generated.contains('\n') && item.choices.is_empty());
        let answer = extract(generated, &Extract::Pattern(r"answer is (\d+)".into()))?;
        assert_eq!(item.correct, answer == item.target);
    }
    Ok(())
}

fn too_many_shots() -> Result<(), Failed> {
    let loaded = Loaded::new(&Device::Cpu, "embedded:nano-llama", Compute::F32)?;
    let task = read_task("headlines", None)?;
    let options = Options { shots: 200, limit: Some(2), ..OPTIONS };
    match loaded.answers(&task, options) {
        Err(Error::Argument { argument, expected, found }) if argument == "--shots" => {
            assert!(expected.contains(&loaded.model.config().max_positions.to_string()));
            assert!(found.contains("200 shots") && found.contains("headlines"), "{found}");
            Ok(())
        }
        other => Err(format!("{other:?}").into()),
    }
}

/// Two by two: 3 and 1 right, 1 and 1 wrong.
fn figures_by_hand() -> Result<(), Failed> {
    let rows = [(0, 0), (0, 0), (0, 0), (0, 1), (1, 1), (1, 0)];
    let outcomes = rows.iter().enumerate().map(|(item, (answer, pick))| {
        lopper::measure::quality::outcome::Outcome {
            item,
            answer: Some(*answer),
            target: String::new(),
            pick: Some(*pick),
            pick_norm: Some(1),
            choices: Vec::new(),
            generated: None,
            correct: answer == pick,
            correct_norm: Some(*answer == 1),
            asked: Asked::default(),
        }
    });
    let figures = Figures::of(&TaskOutcome {
        task: "hand".into(),
        form: Form::Classification,
        shots: 0,
        chance: 0.5,
        labels: vec!["no".into(), "yes".into()],
        outcomes: outcomes.collect(),
    });
    assert_eq!(figures.confusion, [[3, 1], [1, 1]]);
    let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
    assert!(
        close(figures.acc, 4.0 / 6.0) && figures.acc_norm.is_some_and(|acc| close(acc, 2.0 / 6.0))
    );
    assert!(close(figures.acc_stderr, (4.0 / 6.0 * 2.0 / 6.0 / 5.0f64).sqrt()));
    assert!(figures.macro_f1.is_some_and(|f1| close(f1, (6.0 / 8.0 + 2.0 / 4.0) / 2.0)));
    Ok(())
}

/// A copy of a question would show its answer: in the task itself, and in a pool.
fn equal_items() -> Result<(), Failed> {
    use lopper::data::shots::{Bm25, available, pick};
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("dup.jsonl");
    let line = |asked: &str, answer: usize, id: usize| {
        format!(
            "{{\"id\":{id},\"subject\":\"x\",\"question\":\"{asked}\",\"choices\":[\"1\",\"2\"],\"answer\":{answer}}}\n"
        )
    };
    let (two, one) = ("Two minus zero is", "Two minus one is");
    std::fs::write(&path, [line(two, 1, 7), line(two, 1, 8), line(one, 0, 9)].concat())?;
    let mut task = read_task(&path.to_string_lossy(), None)?;
    assert!(available(&task) == 1, "{}", available(&task));
    let shown = pick(&task, 0, &[0, 1, 2], 1, Selection::First)?;
    assert_eq!(shown, [&task.items[2]]);
    assert!(pick(&task, 1, &[0, 1, 2], 2, Selection::First).is_err());
    assert_eq!(pick(&task, 2, &[0, 1, 2], 2, Selection::First)?.len(), 2);
    task.pool = Some(task.items.clone());
    assert!(pick(&task, 0, &[0, 1, 2], 2, Selection::First).is_err() && available(&task) == 1);
    // Two of small MMLU's are equal; the most similar would be the copy.
    let mmlu = read_task("mmlu-mini", None)?;
    let equal =
        |a: &usize| mmlu.items.iter().filter(|b| mmlu.items[*a].same_question(b)).count() > 1;
    let copies: Vec<usize> = (0..mmlu.items.len()).filter(equal).collect();
    assert_eq!(copies.len(), 2);
    let order = Bm25::new(&mmlu.items).rank(mmlu.items[copies[0]].topic());
    let shown = pick(&mmlu, copies[0], &order, available(&mmlu), Selection::Bm25)?;
    assert!(shown.iter().all(|shot| !shot.same_question(&mmlu.items[copies[0]])));
    Ok(())
}

/// As lm-evaluation-harness: the last tokens that fit, of which all but the last are taken in.
fn long_prompts() -> Result<(), Failed> {
    let loaded = Loaded::new(&Device::Cpu, "embedded:nano-llama", Compute::F32)?;
    let context = loaded.model.config().max_positions;
    let tokenizer = Checkpoint::open("embedded:nano-llama")?.tokenizer()?;
    let mut task = read_task("cloze", None)?;
    task.items.truncate(3);
    task.items[1].query = "The Congress of the union met again. ".repeat(context / 4) + "The";
    let pass = Pass { device: &Device::Cpu, compute: Compute::F32 };
    let models = Ensemble::from(&loaded.model);
    let setup = Setup { models: &models, pass: &pass, tokenizer: &tokenizer, encoder: None };
    let mut warnings = Vec::new();
    let outcome = evaluate(&setup, &task, &OPTIONS, &mut |event: Event<'_>| {
        warnings.extend(matches!(event, Event::Warning(_)).then(|| format!("{event:?}")));
        Ok(())
    })?;
    let said = format!("1 of 3 questions are longer than the model's context of {context} tokens");
    assert!(warnings.len() == 1 && warnings[0].contains(&said), "{warnings:?}");
    let (item, target) = (&task.items[1], task.items[1].target().to_string());
    let mut request = encode(&tokenizer, &item.query, &format!(" {target}"), false)?;
    let over = request.inputs() - context;
    request.context.drain(..over);
    assert!(over > 0 && request.inputs() == context, "{over}");
    let alone = Batching { batch: Some(1), share: false };
    let question = Question { requests: vec![request], family: 0 };
    let want = score(&models, &pass, &[question], alone, &mut |_, _| Ok(()))?[0][0];
    let found = &outcome.outcomes[1];
    assert!((found.choices[0].log_likelihood - want.log_likelihood).abs() < 1e-3, "{found:?}");
    let asked = &found.asked;
    assert!(
        asked.cut == over && Figures::of(&outcome).cut == 1 && *asked.arguments[0].0 == *item.query
    );
    // Examples are not cut to pieces, and an answer that is too long by itself cannot be.
    let shots = Options { shots: 1, ..OPTIONS };
    let error = loaded.answers(&task, shots).expect_err("too long").to_string();
    assert!(error.contains("2 of 3 questions") && error.contains("--shots"), "{error}");
    let lopper::data::Scoring::LastWord = task.scoring else { return Err("a cloze".into()) };
    task.scoring = lopper::data::Scoring::Generated(lopper::data::Generated {
        max_tokens: 4,
        stop: vec!["\n".into()],
        extract: lopper::data::Extract::Whole,
        normalize: Vec::new(),
    });
    let outcome = loaded.answers(&task, OPTIONS)?;
    assert!(outcome.outcomes[1].asked.cut > 0 && outcome.outcomes[1].generated.is_some());
    if let lopper::data::Scoring::Generated(how) = &mut task.scoring {
        how.max_tokens = context;
    }
    let error = loaded.answers(&task, OPTIONS).expect_err("no room").to_string();
    assert!(error.contains("question 1: expected an answer shorter than"), "{error}");
    Ok(())
}

/// A weight that is no number is found in the layer behind it, whatever was computed.
fn stops_being_finite() -> Result<(), Failed> {
    use lopper::model::TensorSpec;
    use lopper::tensor::Packed;
    let checkpoint = Checkpoint::open("embedded:nano-llama")?;
    let infinite = |spec: &TensorSpec, packed: Packed| {
        let mut values = packed.to_f32();
        if spec.name == "model.layers.1.mlp.up_proj.weight" {
            values[5] = f32::INFINITY;
        }
        Ok(Packed::from_f32(&values, packed.rows, packed.columns))
    };
    let weights = crate::models::MapWeights(&checkpoint, &infinite);
    let model = crate::models::load(&Device::Cpu, &weights)?;
    let pass = crate::models::pass(&Device::Cpu);
    let error = crate::models::speech_perplexity(&pass, &weights, 512).expect_err("infinite");
    let said = error.message().unwrap_or_default().to_string();
    for part in [
        "loss of scored token 0",
        "input of model.layers.1.mlp.down_proj, token 0",
        "expected finite",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("GPU") && !said.contains("--compute"), "{said}");
    // Losses that are finite, and whose exp is not.
    let steep = |spec: &TensorSpec, packed: Packed| {
        let scale = if spec.name == "model.norm.weight" { 1e4 } else { 1.0 };
        let values: Vec<f32> = packed.to_f32().iter().map(|value| scale * value).collect();
        Ok(Packed::from_f32(&values, packed.rows, packed.columns))
    };
    let steep = crate::models::MapWeights(&checkpoint, &steep);
    let error = crate::models::speech_perplexity(&pass, &steep, 512).expect_err("too large");
    let told = error.message().unwrap_or_default().to_string();
    assert!(
        told.contains("perplexity: expected finite values, found exp of a mean loss of"),
        "{told}"
    );
    let found = not_finite((&model).into(), &pass, &[1, 2, 3], "logits");
    assert!(found.exit_code() == 2 && found.to_string().contains("down_proj"), "{found}");
    Ok(())
}
