//! Heads that score texts: values from outside, files, learning from preferences and labels, merged reward models, and what is
//! refused.

use std::collections::HashMap;
use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::data::training::{Dataset, Examples, Goal, Reading, preferences};
use lopper::data::{BETWEEN, read_task};
use lopper::device::{Device, Random};
use lopper::families::stored_name;
use lopper::gpu::{Options, Tier};
use lopper::measure::quality::rewards::{agreement, best_of};
use lopper::model::{
    BackwardOptions, Checkpoint, Compute, FreshHead, Headed, Loss, Pass, Pooling, Readout,
    ScoreLoss, WeightSource, Weights, export_gguf, export_hf, export_packed, gradients,
};
use lopper::tensor::DType;
use serde_json::{Value, json};

use crate::machine::{device, gpu_trial, on_each};
use crate::models::{checkpoint, load, pass};
use crate::numbers::{Known, Within, assert_close};
use crate::program::{NANO, lopper, read_json, succeeds};

const REWARD: &str = "assets/fixtures/llama-reward";
const LABELS: &str = "assets/fixtures/qwen2-labels";
/// Reads texts at their first token, through a pooler.
const BERT: &str = "assets/fixtures/bert-labels";

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("rewards": round_trip, wrong_files, fresh_heads, rows_of_pairs, rows_of_labels,
        broken_pairs, noise, answers, agreements, best_of_many, wrong_losses, commands, learning, refused);
    trials.extend(on_each("rewards::parts", parts));
    for (name, limit, of_gradients) in [("f32", 1e-5, 1e-5), ("f16", 2e-3, 5e-3)] {
        let dtype = if name == "f16" { DType::F16 } else { DType::F32 };
        for fixture in [REWARD, LABELS, BERT] {
            let model = fixture.rsplit('/').next().unwrap_or(fixture);
            trials.push(Trial::test(format!("rewards::golden::cpu::{name}::{model}"), move || {
                golden(&Device::Cpu, fixture, dtype, limit)?;
                golden_gradients(&Device::Cpu, fixture, dtype, of_gradients)
            }));
            for tier in [Tier::Baseline, Tier::F16] {
                let on = move || {
                    let device = device(Options { tier, checked: true, ..Options::default() })?;
                    if dtype == DType::F16 && !device.capabilities().f16 {
                        return Ok(());
                    }
                    golden(&device, fixture, dtype, limit)?;
                    golden_gradients(&device, fixture, dtype, of_gradients)
                };
                let at = format!("gpu-{}::{name}::{model}", tier.name());
                trials.push(gpu_trial(format!("rewards::golden::{at}"), on));
            }
        }
    }
    trials
}

fn known(fixture: &str) -> Result<Known, Failed> {
    Known::open(&format!("{fixture}/golden.safetensors"))
}

/// The texts of the outside values without what fills their rows.
fn texts(known: &Known) -> Result<Vec<Vec<u32>>, Failed> {
    let (ids, lengths) = (known.words("input_ids")?, known.words("lengths")?);
    let rows = ids.chunks_exact(known.shape("input_ids")?[1]).zip(lengths);
    Ok(rows.map(|(row, length)| row[..length as usize].to_vec()).collect())
}

fn scores(device: &Device, weights: &dyn Weights, texts: &[Vec<u32>]) -> Result<Vec<f32>, Failed> {
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    Ok(load(device, weights)?.scores(&pass(device), &texts, &mut |_, _| {})?)
}

/// Scores of texts of several lengths.
fn golden(device: &Device, fixture: &str, dtype: DType, limit: f64) -> Result<(), Failed> {
    let (weights, known) = (Checkpoint::open(fixture)?, known(fixture)?);
    let pass = Pass { device, compute: Compute::with(dtype) };
    let texts = texts(&known)?;
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let found = load(device, &weights)?.scores(&pass, &texts, &mut |_, _| {})?;
    assert_close("scores", &found, &known.floats("scores")?, Within::Norm(limit));
    // Nobody sees what is beside a text: alone it has the same scores, but for the rounding of other kernels.
    let labels = found.len() / texts.len();
    for (text, beside) in texts.iter().zip(found.chunks_exact(labels)) {
        let alone = load(device, &weights)?.scores(&pass, &[text], &mut |_, _| {})?;
        assert_close("scores alone", &alone, beside, Within::Norm(limit));
    }
    Ok(())
}

/// The loss of a fixture: its rows in pairs, or their labels.
fn loss<'l>(fixture: &str, read: &'l [bool]) -> Loss<'l> {
    match fixture {
        REWARD => Loss::scores(ScoreLoss::Preferences, read),
        _ => Loss::scores(ScoreLoss::Labels(&[2, 0, 1]), read),
    }
}

/// Where rows of so many tokens are read: at the last one of each text.
fn places(known: &Known) -> Result<Vec<bool>, Failed> {
    let width = known.shape("input_ids")?[1];
    let lengths = known.words("lengths")?;
    let row = |length: u32| (0..width).map(move |at| at + 1 == length as usize);
    Ok(lengths.into_iter().flat_map(row).collect())
}

/// The rows of a fixture as a pass takes them, and where each is read.
fn rows(fixture: &str, known: &Known) -> Result<(Vec<u32>, Vec<bool>), Failed> {
    let mut ids = known.words("input_ids")?;
    if fixture != BERT {
        return Ok((ids, places(known)?));
    }
    // Its tokens see what is behind them: where a text ends is marked.
    let width = known.shape("input_ids")?[1];
    for (row, length) in ids.chunks_exact_mut(width).zip(known.words("lengths")?) {
        row[length as usize..].fill(BETWEEN);
    }
    let read = (0..ids.len()).map(|at| at.is_multiple_of(width)).collect();
    Ok((ids, read))
}

fn golden_gradients(
    device: &Device,
    fixture: &str,
    dtype: DType,
    limit: f64,
) -> Result<(), Failed> {
    let (weights, known) = (Checkpoint::open(fixture)?, known(fixture)?);
    let (ids, read) = rows(fixture, &known)?;
    let (model, mut found) = (load(device, &weights)?, 0);
    let pass = Pass { device, compute: Compute::with(dtype) };
    let sequences = known.shape("input_ids")?[0];
    let options = BackwardOptions { loss: loss(fixture, &read), ..BackwardOptions::ALL };
    let source = WeightSource::Resident(&model);
    let sum =
        gradients(source, &pass, &ids, sequences, options, &mut |_, _| {}, &mut |gradient| {
            let values = device.read(&gradient.values)?.to_f32();
            let stored = weights.specs().iter().find(|spec| spec.name == gradient.name);
            let stored = stored_name(weights.config(), stored.expect("a tensor"));
            let expected = known.floats(&format!("grad.{stored}")).expect("each has one");
            // What all keys have in common changes nothing: the gradient of their bias is what is left of sums that cancel, and
            // nothing at all where keys are not rotated.
            let limit = match gradient.name.rsplit_once('.') {
                Some((module, "bias")) if module.ends_with("k_proj") => 20.0 * limit,
                Some((module, "bias")) if module.ends_with("self.key") => f64::INFINITY,
                _ => limit,
            };
            assert_close(&gradient.name, &values, &expected, Within::Norm(limit));
            found += 1;
            Ok(())
        })?;
    assert_close("loss", &[sum], &known.floats("loss")?, Within::Norm(limit));
    assert_eq!(found, weights.specs().len(), "gradients, each once");
    Ok(())
}

/// Gradients by microbatches (never of half a pair), from a model on the device or layer by layer, add up to the whole.
fn parts(device: &Device) -> Result<(), Failed> {
    // Of each fixture its rows, and the microbatches that they make one at a time, and two.
    for (fixture, sequences, one, two) in [(REWARD, 4, 1, 0), (BERT, 3, 2, 1)] {
        let (weights, known) = (Checkpoint::open(fixture)?, known(fixture)?);
        let (ids, read) = rows(fixture, &known)?;
        let (model, pass) = (load(device, &weights)?, pass(device));
        let resident = WeightSource::Resident(&model);
        let enough = if fixture == REWARD { 36 } else { 2 * ids.len() / sequences };
        for (source, tokens, last) in
            [(resident, 1, one), (WeightSource::Streamed(device, &weights), enough, two)]
        {
            let options =
                BackwardOptions { tokens, loss: loss(fixture, &read), ..BackwardOptions::ALL };
            let mut sums: HashMap<String, Vec<f32>> = HashMap::new();
            let mut most = 0;
            gradients(source, &pass, &ids, sequences, options, &mut |_, _| {}, &mut |gradient| {
                let values = device.read(&gradient.values)?.to_f32();
                most = most.max(gradient.part);
                let sum = sums.entry(gradient.name).or_insert_with(|| vec![0.0; values.len()]);
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                Ok(())
            })?;
            assert_eq!(most, last, "{fixture}: parts of whole pairs, or of texts");
            for spec in weights.specs().iter().filter(|spec| !spec.name.ends_with("key.bias")) {
                let name = stored_name(weights.config(), spec);
                let expected = known.floats(&format!("grad.{name}"))?;
                let sum = sums.get(&spec.name).ok_or_else(|| name.clone())?;
                assert_close(&name, sum, &expected, Within::Norm(1e-5));
            }
        }
    }
    Ok(())
}

/// Folders say what the head scores, as transformers reads it; GGUF has no place for it, and says so.
fn round_trip() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for fixture in [REWARD, LABELS] {
        let weights = Checkpoint::open(fixture)?;
        let texts = texts(&known(fixture)?)?;
        let expected = scores(&Device::Cpu, &weights, &texts)?;
        for kind in ["hf", "packed"] {
            let path = folder.path().join(kind).join(Path::new(fixture).file_name().ok_or("name")?);
            std::fs::create_dir_all(&path)?;
            let config = weights.config_json()?;
            match kind {
                "hf" => drop(export_hf(&path, config, &weights, None)?),
                _ => export_packed(&path, config, &weights, None)?,
            }
            let before = read_json(format!("{fixture}/config.json"))?;
            let after = read_json(path.join("config.json"))?;
            for key in ["architectures", "id2label", "label2id"] {
                assert_eq!(before[key], after[key], "{key}");
            }
            let again = checkpoint(&path)?;
            assert_eq!(again.config(), weights.config());
            assert_eq!(scores(&Device::Cpu, &again, &texts)?, expected, "{kind}");
        }
        let refused = export_gguf(&folder.path().join("m.gguf"), &weights, &weights, None);
        let refused = refused.expect_err("a head without a place").to_string();
        assert!(refused.contains("scores texts") && refused.contains("hf or packed"), "{refused}");
    }
    Ok(())
}

/// Configurations that are damaged, or of heads that this version does not have.
fn wrong_files() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let config = read_json(format!("{LABELS}/config.json"))?;
    std::fs::copy(format!("{LABELS}/model.safetensors"), folder.path().join("model.safetensors"))?;
    let opened = |change: &[(&str, Value)]| {
        let mut config = config.clone();
        change.iter().for_each(|(key, value)| config[*key] = value.clone());
        std::fs::write(folder.path().join("config.json"), config.to_string())?;
        Ok::<_, Failed>(Checkpoint::open(&folder.path().to_string_lossy()))
    };
    for (change, said) in [
        (vec![("id2label", json!({"1": "a"}))], "a name for each label, numbered from 0"),
        (vec![("id2label", json!(["a"]))], "a name for each label, numbered from 0"),
        (vec![("id2label", json!({}))], "1 to 65536 labels"),
        (vec![("id2label", json!({"0": "a", "1": "b"}))], "shape [2, 64]"),
        (vec![("id2label", Value::Null)], "shape [2, 64]"),
        (vec![("id2label", Value::Null), ("num_labels", json!(1 << 20))], "1 to 65536 labels"),
        (vec![("architectures", json!(["Qwen2ForCausalLM"]))], "lm_head.weight"),
    ] {
        let error = opened(&change)?.err().ok_or_else(|| said.to_string())?.to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
    // transformers' own names where there are none.
    let three = opened(&[("id2label", Value::Null), ("num_labels", json!(3))])??;
    let labels = &three.config().readout.as_ref().ok_or("labels")?.labels;
    assert_eq!(*labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let t5 = json!({"architectures": ["T5ForSequenceClassification"], "model_type": "t5", "d_model": 8, "d_ff": 8, "num_layers": 1,
        "num_heads": 1, "d_kv": 8, "vocab_size": 8, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false});
    std::fs::write(folder.path().join("config.json"), t5.to_string())?;
    let error = Checkpoint::open(&folder.path().to_string_lossy()).err().ok_or("T5")?.to_string();
    assert!(error.contains("T5ForSequenceClassification"), "{error}");
    Ok(())
}

/// A head put on a model: of zeros, or drawn by the seed, in the place of the one over the vocabulary.
fn fresh_heads() -> Result<(), Failed> {
    let weights = Checkpoint::open(NANO)?;
    let readout = Readout::scores(Pooling::Last, &[]);
    let text = vec![vec![5, 6, 7], vec![8]];
    let of =
        |fresh, seed| scores(&Device::Cpu, &Headed::new(&weights, &readout, fresh, seed)?, &text);
    assert_eq!(of(FreshHead::Zero, 1)?, [0.0, 0.0]);
    let (one, two) = (of(FreshHead::Normal, 1)?, of(FreshHead::Normal, 2)?);
    assert!(one == of(FreshHead::Normal, 1)? && one != two && one[0] != one[1], "{one:?} {two:?}");
    let headed = Headed::new(&weights, &readout, FreshHead::Normal, 3)?;
    let head = headed.specs().last().ok_or("a head")?;
    let width = headed.config().hidden_size;
    assert_eq!((head.name.as_str(), head.shape()), ("score.weight", vec![1, width]));
    assert!(!headed.specs().iter().any(|spec| spec.name == "lm_head.weight"), "two heads");
    let squares: f32 = headed.load(head)?.to_f32().iter().map(|v| v * v).sum();
    // Of the mean 1 and the deviation sqrt(2 / width).
    assert!((squares - 1.0).abs() < 4.0 * (2.0 / width as f32).sqrt(), "{squares}");
    let t5 = Checkpoint::open("embedded:tiny-t5")?;
    assert!(Headed::new(&t5, &readout, FreshHead::Zero, 0).is_err(), "a head on two stacks");
    Ok(())
}

fn dataset(path: &Path, length: usize) -> Dataset {
    let data = vec![path.to_string_lossy().into_owned()];
    Dataset { data, length, held_out: 0.0, shuffle: false, ..Dataset::default() }
}

fn reward_labels() -> Vec<String> {
    Readout::scores(Pooling::Last, &[]).labels
}

/// TRL's forms of preferences: both texts of a pair in rows side by side, EOS at their ends, read there.
fn rows_of_pairs() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pairs.jsonl");
    let tokenizer = Checkpoint::open("embedded:tiny-llama")?.tokenizer()?;
    std::fs::write(
        &path,
        "{\"prompt\": \"The union is\", \"chosen\": \" strong\", \"rejected\": \" weak\"}\n\
         {\"chosen\": \"My fellow citizens\", \"rejected\": \"My enemies and all who stand with them tonight\"}\n",
    )?;
    let examples =
        Examples::texts(&dataset(&path, 12), (&reward_labels(), Pooling::Last), &tokenizer, 0)?;
    assert_eq!((examples.rows_per_epoch(), examples.tokens_per_epoch()), (2, 48));
    let (batch, _) = examples.batch(&examples.start(), 2)?;
    assert_eq!((batch.sequences, batch.length, &batch.goal), (4, 12, &Goal::Preferences));
    let eos = tokenizer.eos[0];
    let expected = [
        "The union is strong",
        "The union is weak",
        "My fellow citizens",
        "My enemies and all who stand with them tonight",
    ];
    for (row, text) in expected.iter().enumerate() {
        let ids = &batch.ids[row * 12..][..12];
        let scored = &batch.scored[row * 12..][..12];
        let read: Vec<usize> = (0..12).filter(|at| scored[*at]).collect();
        let mut whole = tokenizer.encode(text, true)?;
        whole.push(eos);
        // One that is too long loses its beginning.
        let kept = &whole[whole.len().saturating_sub(12)..];
        assert_eq!((read.as_slice(), &ids[..kept.len()]), (&[kept.len() - 1][..], kept), "{text}");
        assert!(ids[kept.len()..].iter().all(|id| *id == tokenizer.pad.unwrap_or(eos)), "{ids:?}");
    }
    let reading = Reading { tokenizer: &tokenizer, pooling: Pooling::Last, most: usize::MAX };
    let pairs = preferences("headlines", reading)?;
    assert_eq!(pairs.len(), 1000, "the questions that are asked");
    let text = |ids: &[u32]| tokenizer.decode(ids, true);
    let (chosen, rejected) = (text(&pairs[0].chosen)?, text(&pairs[0].rejected)?);
    let same = chosen.bytes().zip(rejected.bytes()).take_while(|(a, b)| a == b).count();
    let mut ends = [chosen[same..].trim(), rejected[same..].trim()];
    ends.sort_unstable();
    assert_eq!(ends, ["no", "yes"], "{chosen} | {rejected}");
    Ok(())
}

fn rows_of_labels() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("labels.jsonl");
    let tokenizer = Checkpoint::open("embedded:tiny-llama")?.tokenizer()?;
    let lines = ["{\"text\": \"a\", \"label\": \"for\"}", "{\"text\": \"b\", \"label\": 0}"];
    std::fs::write(&path, lines.join("\n"))?;
    let labels: Vec<String> = ["against", "neither", "for"].map(String::from).to_vec();
    let examples = Examples::texts(&dataset(&path, 8), (&labels, Pooling::Last), &tokenizer, 0)?;
    let (batch, _) = examples.batch(&examples.start(), 2)?;
    assert_eq!((batch.sequences, &batch.goal), (2, &Goal::Labels(vec![2, 0])));
    std::fs::write(&path, "{\"text\": \"a\", \"label\": \"perhaps\"}")?;
    let error = Examples::texts(&dataset(&path, 8), (&labels, Pooling::Last), &tokenizer, 0)
        .err()
        .ok_or("a label")?;
    assert!(error.to_string().contains("a label out of against, neither, for"), "{error}");
    Ok(())
}

fn broken_pairs() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pairs.jsonl");
    let tokenizer = Checkpoint::open("embedded:tiny-llama")?.tokenizer()?;
    for (line, said) in [
        ("{\"prompt\": \"a\", \"chosen\": \"b\"}", "fields chosen and rejected"),
        ("{\"chosen\": \"b\", \"rejected\": \"b\"}", "the same text twice"),
        ("{\"chosen\": \"b\", \"rejected\": \" \"}", "a text that is not blank & `rejected`"),
        ("{\"chosen\": [{\"role\": \"user\"}], \"rejected\": []}", "a list of messages"),
        ("{\"chosen\": 3, \"rejected\": \"b\"}", "`chosen`"),
        ("[]", "a JSON object"),
        ("", "a text"),
    ] {
        std::fs::write(&path, line)?;
        let error =
            Examples::texts(&dataset(&path, 8), (&reward_labels(), Pooling::Last), &tokenizer, 0);
        let error = error.err().ok_or_else(|| line.to_string())?.to_string();
        let said = said.split(" & ").last().unwrap_or(said);
        assert!(error.contains(said), "{said}: {error}");
    }
    Ok(())
}

/// So large a share of the pairs is turned around, the same ones in every order; none of those kept apart.
fn noise() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pairs.jsonl");
    let tokenizer = Checkpoint::open("embedded:tiny-llama")?.tokenizer()?;
    let line = |n: usize| format!("{{\"chosen\": \"good {n}\", \"rejected\": \"bad {n}\"}}\n");
    std::fs::write(&path, (0..40).map(line).collect::<String>())?;
    let turned = |noise_seed: u64, seed: u64, held_out: f64| -> Result<Vec<String>, Failed> {
        let dataset = Dataset {
            label_noise: 0.25,
            noise_seed: Some(noise_seed),
            held_out,
            shuffle: true,
            ..dataset(&path, 12)
        };
        let examples =
            Examples::texts(&dataset, (&reward_labels(), Pooling::Last), &tokenizer, seed)?;
        let (batch, _) = examples.batch(&examples.start(), examples.rows_per_epoch())?;
        let pairs = batch.ids.chunks_exact(24).map(|pair| tokenizer.decode(&pair[..12], true));
        let firsts = pairs.collect::<Result<Vec<_>, _>>()?;
        let mut turned: Vec<String> =
            firsts.into_iter().filter(|text| text.contains("bad")).collect();
        turned.sort();
        assert_eq!(examples.figures()[0].noisy, turned.len());
        for batch in examples.held_out(8) {
            for pair in batch.ids.chunks_exact(24) {
                assert!(tokenizer.decode(&pair[..12], true)?.contains("good"), "kept apart");
            }
        }
        Ok(turned)
    };
    let ten = turned(1, 5, 0.0)?;
    assert_eq!(ten.len(), 10, "a quarter of 40");
    assert_eq!(ten, turned(1, 6, 0.0)?, "whatever the order");
    assert!(ten != turned(2, 5, 0.0)?, "another seed turns others");
    let fewer = turned(1, 5, 0.5)?;
    assert!(fewer.iter().all(|text| ten.contains(text)), "{fewer:?} of {ten:?}");
    let next_tokens = Dataset { label_noise: 0.1, ..Dataset::default() };
    assert!(Examples::read(&next_tokens, &tokenizer, 0).is_err(), "noise of next tokens");
    Ok(())
}

/// A head of labels answers a task's questions: the choice whose label has the highest score.
fn answers() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let tune = "--method full --include score --score-head normal --labels no,yes --data embedded:headlines --steps 1 --batch 2";
    let rest = "--length 32 --held-out 0 --rate 0.01 --no-eval --formats packed --out l";
    succeeds(folder, &format!("tune {NANO} {tune} {rest}"))?;
    let eval = "eval l/packed --task headlines --limit 12 --samples s.jsonl --json=-";
    let found = &succeeds(folder, eval)?.json()?["tasks"]["headlines"];
    let weights = checkpoint(&folder.join("l/packed"))?;
    let (tokenizer, task) = (weights.tokenizer()?, read_task("headlines", None)?);
    let reading = Reading { tokenizer: &tokenizer, pooling: Pooling::Last, most: usize::MAX };
    let mut texts = Vec::new();
    for item in &task.items[..12] {
        // The headline without a prompt.
        let text =
            item.query.strip_prefix("Headline: ").and_then(|t| t.strip_suffix("\nSarcastic:"));
        texts.push(reading.whole(text.ok_or("a headline")?)?.0);
    }
    let scores = scores(&Device::Cpu, &weights, &texts)?;
    let right = scores.chunks_exact(2).zip(&task.items).filter(|(scores, item)| {
        // The head's labels are no and yes, the task's yes and no.
        let pick = if scores[1] >= scores[0] { "yes" } else { "no" };
        pick == item.target()
    });
    let right = right.count();
    assert_eq!((&found["n"], &found["form"]), (&json!(12), &json!("classification")), "{found}");
    assert!((found["acc"].as_f64().ok_or("acc")? - right as f64 / 12.0).abs() < 1e-12, "{found}");
    let confusion = found["confusion"].as_array().ok_or("a matrix")?;
    let diagonal = (0..2).filter_map(|at| confusion[at][at].as_u64()).sum::<u64>();
    assert_eq!(diagonal, right as u64, "{found}");
    for (arguments, said) in [
        ("--task cloze", "choices that the model's head scores: no, yes"),
        ("--task headlines --shots 1", "none, for a model whose head scores labels"),
        ("--ppl embedded:heldout-2026", "eval --task measures it"),
        ("--preferences headlines", "one of 2 labels"),
    ] {
        lopper(folder, &format!("eval l/packed {arguments} --device cpu"))?.refused(2, said);
    }
    Ok(())
}

/// Shares and losses by hand.
fn agreements() -> Result<(), Failed> {
    let found = agreement(&[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [800.0, 0.0]]);
    assert_eq!((found.accuracy, found.n), (0.5, 4), "equal scores are wrong");
    let expected = ((1.0 + (-1f64).exp()).ln() + (1.0 + 2f64.exp()).ln() + 2f64.ln() + 0.0) / 4.0;
    assert!((found.loss - expected).abs() < 1e-12, "{found:?}, {expected}");
    assert!((found.margin - 799.0 / 4.0).abs() < 1e-12, "{found:?}");
    assert!((found.stderr - (1.0 / 3.0f64 / 4.0).sqrt()).abs() < 1e-12, "{found:?}");
    Ok(())
}

/// The best of n, over all subsets by trying each.
fn best_of_many() -> Result<(), Failed> {
    let mut random = Random::new(3);
    let mut list = |count: usize| -> (Vec<f64>, Vec<f64>) {
        let mut values = || (0..count).map(|_| f64::from(random.value())).collect();
        (values(), values())
    };
    let prompts = [list(6), list(6), list(7)];
    let judged: Vec<(&[f64], &[f64])> = prompts.iter().map(|(a, b)| (&a[..], &b[..])).collect();
    let rows = best_of(&judged).ok_or("rows")?;
    assert_eq!(rows.iter().map(|row| row.n).collect::<Vec<_>>(), [1, 2, 4, 6]);
    for row in rows {
        let mean = |(scores, rewards): &(&[f64], &[f64])| {
            let (mut sum, mut count) = ([0.0; 2], 0.0);
            for subset in (0u32..1 << scores.len()).filter(|s| s.count_ones() as usize == row.n) {
                let of = (0..scores.len()).filter(|place| subset >> place & 1 == 1);
                let best = of.max_by(|a, b| scores[*a].total_cmp(&scores[*b])).expect("a text");
                sum = [sum[0] + rewards[best], sum[1] + scores[best]];
                count += 1.0;
            }
            sum.map(|sum| sum / count)
        };
        let all: Vec<[f64; 2]> = judged.iter().map(mean).collect();
        for (found, place) in [(row.reward, 0), (row.own, 1)] {
            let expected = all.iter().map(|of| of[place]).sum::<f64>() / 3.0;
            assert!((found - expected).abs() < 1e-12, "best of {}: {found}, {expected}", row.n);
        }
    }
    assert!(best_of(&[(&[1.0], &[1.0])]).is_none(), "one text is no choice");
    Ok(())
}

/// Losses that do not fit the head, rows or labels.
fn wrong_losses() -> Result<(), Failed> {
    let device = Device::Cpu;
    let of =
        |fixture: &str, loss: Loss<'_>, by_sequence: bool, rows: usize| -> Result<String, Failed> {
            let (weights, known) = (Checkpoint::open(fixture)?, known(fixture)?);
            let width = known.shape("input_ids")?[1];
            let ids = &known.words("input_ids")?[..rows * width];
            let options = BackwardOptions { loss, by_sequence, ..BackwardOptions::ALL };
            let source = WeightSource::Streamed(&device, &weights);
            let result =
                gradients(source, &pass(&device), ids, rows, options, &mut |_, _| {}, &mut |_| {
                    Ok(())
                });
            Ok(result.err().ok_or("a loss that does not fit")?.to_string())
        };
    let (pairs, labels) = (places(&known(REWARD)?)?, places(&known(LABELS)?)?);
    let (nowhere, preferences) = (vec![false; 24], ScoreLoss::Preferences);
    for (found, said) in [
        (of(REWARD, Loss::NEXT_TOKENS, false, 4)?, "foretells tokens"),
        (of(REWARD, Loss::scores(preferences, &pairs), true, 4)?, "a loss of next tokens"),
        (of(REWARD, Loss::scores(preferences, &pairs[..36]), false, 3)?, "rows in pairs"),
        (of(REWARD, Loss::scores(preferences, &nowhere), false, 2)?, "one or more"),
        (of(LABELS, Loss::scores(preferences, &labels), false, 3)?, "one label"),
        (
            of(LABELS, Loss::scores(ScoreLoss::Labels(&[0, 3, 1]), &labels), false, 3)?,
            "one of the head's 3",
        ),
        (
            of(LABELS, Loss::scores(ScoreLoss::Labels(&[0]), &labels), false, 3)?,
            "one for each of 3",
        ),
    ] {
        assert!(found.contains(said), "{said}: {found}");
    }
    Ok(())
}

const PAIRS: &str = "{\"prompt\": \"One\", \"chosen\": \" two\", \"rejected\": \" six\"}\n\
     {\"prompt\": \"Two\", \"chosen\": \" four\", \"rejected\": \" one\"}\n\
     {\"prompt\": \"Four\", \"chosen\": \" eight\", \"rejected\": \" nine\"}\n";

/// A reward model from nothing: the head, then all weights from there, members merged, measured, and the best of several texts.
fn commands() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    std::fs::write(folder.join("pairs.jsonl"), PAIRS)?;
    let tune = |model: &str, rest: &str| {
        let data = "--data pairs.jsonl --held-out 1 --steps 2 --batch 2 --length 12 --no-eval";
        succeeds(folder, &format!("tune {model} {data} --formats packed,hf {rest}"))
    };
    tune(NANO, "--method full --score-head zero --include score --rate 0.01 --out probe")?;
    let (before, after) = (Checkpoint::open(NANO)?, checkpoint(&folder.join("probe/packed"))?);
    for spec in before.specs().iter().filter(|spec| spec.name != "lm_head.weight") {
        assert_eq!(before.load(spec)?.to_f32(), after.load(spec)?.to_f32(), "{}", spec.name);
    }
    let head = after.specs().last().ok_or("a head")?;
    assert!(after.load(head)?.to_f32().iter().any(|value| *value != 0.0), "the head is learned");
    let training = read_json(folder.join("probe/training.json"))?;
    let looks = training["looks"].as_array().ok_or("looks")?;
    assert!((looks[0]["loss"].as_f64().ok_or("a loss")? - 2f64.ln()).abs() < 1e-6, "{training}");
    assert_eq!((&training["held_out_tokens"], looks.len() > 1), (&json!(1), true), "{training}");
    assert!(looks.iter().all(|look| look["accuracy"].is_number()), "{training}");
    tune("probe/packed", "--method full --rate 0.001 --seed 1 --out a")?;
    tune(
        "probe/packed",
        "--method lora --rank 4 --rate 0.01 --seed 2 --label-noise 0.5 --noise-seed 3 --out b",
    )?;
    let adapter = read_json(folder.join("b/adapter/adapter_config.json"))?;
    assert_eq!(
        (&adapter["task_type"], &adapter["modules_to_save"]),
        (&json!("SEQ_CLS"), &json!(["score"]))
    );
    let training = read_json(folder.join("b/training.json"))?;
    assert_eq!(training["sources"][0]["noisy"].as_u64().map(|n| (1..=2).contains(&n)), Some(true));
    succeeds(
        folder,
        "merge a/packed --with b/packed --method linear --no-eval --formats packed --out warm",
    )?;
    let [a, b, warm] = ["a", "b", "warm"].map(|name| checkpoint(&folder.join(name).join("packed")));
    let (a, b, warm) = (a?, b?, warm?);
    for spec in [a.specs().last().ok_or("a head")?, &a.specs()[1]] {
        let [a, b, warm] = [&a, &b, &warm].map(|model| Ok::<_, Failed>(model.load(spec)?.to_f32()));
        let (a, b) = (a?, b?);
        let mean: Vec<f32> = a.iter().zip(&b).map(|(a, b)| (a + b) / 2.0).collect();
        assert!(a != b, "{} is learned", spec.name);
        assert_close(&spec.name, &warm?, &mean, Within::Norm(1e-3));
    }
    let eval = |rest: &str| -> Result<Value, Failed> {
        succeeds(folder, &format!("eval {rest} --preferences pairs.jsonl --json=-"))?.json()
    };
    let [a, b, both] = [eval("a/packed")?, eval("b/hf")?, eval("a/packed --ensemble b/hf")?];
    let margin = |found: &Value| found["preferences"]["margin"].as_f64().unwrap_or(f64::NAN);
    assert_eq!(both["preferences"]["n"], json!(3));
    let mean = (margin(&a) + margin(&b)) / 2.0;
    assert!((margin(&both) - mean).abs() < 1e-5 * mean.abs().max(1.0), "{a} {b} {both}");
    let drawn = "generate embedded:nano-llama --prompts pairs.jsonl --best-of 4 --temperature 1 -n 3 --seed 7";
    let drawn = format!("{drawn} --reward a/packed --reward b/hf --out candidates.jsonl --json=-");
    let drawn = succeeds(folder, &drawn)?.json()?;
    for one in drawn["prompts"].as_array().ok_or("prompts")? {
        let rewards: Vec<f64> =
            one["rewards"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let best = one["best"].as_u64().ok_or("a place")? as usize;
        assert!(
            rewards.len() == 4 && rewards.iter().all(|reward| rewards[best] >= *reward),
            "{one}"
        );
        assert_eq!(one["text"], one["completions"][best]);
    }
    let judged = "eval a/packed --ensemble b/hf --candidates candidates.jsonl --json=-";
    let judged = succeeds(folder, judged)?.json()?;
    let rows = judged["best_of"].as_array().ok_or("rows")?;
    assert_eq!(
        rows.iter().map(|row| row["n"].as_u64()).collect::<Vec<_>>(),
        [Some(1), Some(2), Some(4)]
    );
    for row in rows {
        // The same judges: what it is worth is what they say.
        let (reward, own) =
            (row["reward"].as_f64().ok_or("worth")?, row["own"].as_f64().ok_or("own")?);
        assert!((reward - own).abs() < 1e-5 * own.abs().max(1.0), "{row}");
    }
    let card = std::fs::read_to_string(folder.join("a/README.md"))?;
    assert!(card.contains("pipeline_tag: \"text-classification\""), "{card}");
    let shown = succeeds(folder, "inspect a/hf")?.out;
    assert!(shown.contains("a head that scores LABEL_0"), "{shown}");
    succeeds(folder, "quantize a/packed --bits 4 --no-eval --formats packed --out q")?;
    let q = checkpoint(&folder.join("q/packed"))?;
    assert_eq!(
        q.format(q.specs().last().ok_or("a head")?)?.label(),
        "f32",
        "no method makes it smaller"
    );
    assert!(eval("q/packed")?["preferences"]["accuracy"].is_number());
    Ok(())
}

/// A head alone learns what tells good from bad, and labels likewise.
fn learning() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    std::fs::write(folder.join("pairs.jsonl"), PAIRS)?;
    let texts = "{\"text\": \"One two\", \"label\": \"up\"}\n{\"text\": \"Two one\", \"label\": \"down\"}\n";
    std::fs::write(folder.join("texts.jsonl"), texts)?;
    for (data, batch, head) in [("pairs", 3, ""), ("texts", 2, "--labels up,down")] {
        let run = format!(
            "tune {NANO} --method full --include score --score-head zero {head} --data {data}.jsonl --held-out 0 --steps 12 \
             --batch {batch} --length 8 --rate 0.05 --warmup 0 --no-eval --formats packed --out {data}"
        );
        succeeds(folder, &run)?;
        let training = read_json(folder.join(data).join("training.json"))?;
        let steps = training["steps"].as_array().ok_or("steps")?;
        let [first, last] = [&steps[0], &steps[steps.len() - 1]].map(|step| step["loss"].as_f64());
        let (first, last) = (first.ok_or("a loss")?, last.ok_or("a loss")?);
        assert!((first - 2f64.ln()).abs() < 1e-6 && last < 0.3 * first, "{data}: {first}, {last}");
    }
    Ok(())
}

/// Commands for models that foretell tokens say what is wrong in a line, and those for reward models likewise.
fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let model = std::env::current_dir()?.join(REWARD);
    let model = model.display();
    std::fs::write(folder.path().join("pairs.jsonl"), PAIRS)?;
    for (arguments, said) in [
        (format!("generate {model} --prompt a"), "a model that foretells tokens"),
        (format!("chat {model}"), "a model that foretells tokens"),
        (format!("serve {model} --port 0"), "a model that foretells tokens"),
        (format!("eval {model} --ppl embedded:heldout-2026"), "a model that foretells tokens"),
        (
            format!("eval {NANO} --base {model} --ppl embedded:heldout-2026"),
            "--base & foretells tokens",
        ),
        (format!("compare {model} {NANO}"), "a model that foretells tokens"),
        (format!("bench model {model}"), "a model that foretells tokens"),
        (format!("generate {NANO} --ensemble {model} --prompt a"), "--ensemble & foretells tokens"),
        (
            format!("eval {NANO} --preferences pairs.jsonl"),
            "a model that scores texts & --score-head",
        ),
        (
            format!("generate {NANO} --prompt a --best-of 4 --temperature 1 --reward {NANO}"),
            "--reward & scores texts",
        ),
        (
            format!("tune {NANO} --score-head zero --labels one --data pairs.jsonl --out o"),
            "two or more",
        ),
        (
            format!(
                "tune {NANO} --method full --include *q_proj --score-head zero --data pairs.jsonl --out o --length 8"
            ),
            "learn the fresh head",
        ),
        (
            format!("tune {NANO} --label-noise 0.5 --data embedded:calibration --out o"),
            "label_noise",
        ),
        (
            "tune embedded:tiny-t5 --score-head zero --data pairs.jsonl --out o --length 8".into(),
            "one stack",
        ),
    ] {
        lopper(folder.path(), &format!("{arguments} --device cpu"))?.refused(2, said);
    }
    Ok(())
}
