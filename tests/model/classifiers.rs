//! BERT with a head that scores labels: files, labels and the choices of tasks, tuning, answers, and what is refused. What it computes is
//! held to values from outside in `rewards`.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::data::training::label_places;
use lopper::data::{Choice, Item, Pooling};
use lopper::device::Device;
use lopper::formats::safetensors::{NewTensor, Safetensors, write_folder};
use lopper::methods::tune::merged::Merged;
use lopper::model::{
    Adapters, Checkpoint, FreshHead, Headed, Readout, Role, Weights, export_hf, export_packed,
};
use serde_json::{Value, json};

use super::sentence_encoders::{BERT, with_words};
use crate::models::{checkpoint, load, pass};
use crate::numbers::{Known, Within, assert_close};
use crate::program::{NANO, lopper, read_json, succeeds};

const LABELS: &str = "assets/fixtures/bert-labels";

pub fn trials() -> Vec<Trial> {
    suite!("classifiers": round_trip, names, fresh_heads, choices, tuning, answers, adapters, opens_what_peft_wrote, smaller, refused)
}

const TEXTS: [&[u32]; 3] = [&[5, 6, 7], &[8, 9, 10, 11, 12], &[13]];

fn scores(weights: &dyn Weights) -> Result<Vec<f32>, Failed> {
    let device = Device::Cpu;
    Ok(load(&device, weights)?.scores(&pass(&device), &TEXTS, &mut |_, _| {})?)
}

/// A folder for transformers has its names; both kinds say what is scored and compute the same.
fn round_trip() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let weights = Checkpoint::open(LABELS)?;
    let expected = scores(&weights)?;
    for kind in ["hf", "packed"] {
        let path = folder.path().join(kind);
        std::fs::create_dir_all(&path)?;
        match kind {
            "hf" => drop(export_hf(&path, weights.config_json()?, &weights, None)?),
            _ => export_packed(&path, weights.config_json()?, &weights, None)?,
        }
        let again = checkpoint(&path)?;
        assert_eq!(again.config(), weights.config());
        assert_eq!(scores(&again)?, expected, "{kind}");
        let config = read_json(path.join("config.json"))?;
        assert_eq!(config["architectures"], json!(["BertForSequenceClassification"]));
        assert_eq!(config["id2label"], json!({"0": "positive", "1": "negative", "2": "neutral"}));
        assert!(!path.join("modules.json").exists(), "no sentence encoder");
    }
    let [own, written] =
        [Path::new(LABELS), &folder.path().join("hf")].map(Safetensors::open_folder);
    let (own, written) = (own?, written?);
    let sorted = |tensors: &Safetensors| {
        let mut names: Vec<String> = tensors.names().map(str::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(sorted(&written), sorted(&own), "transformers' names");
    Ok(())
}

/// The same tensors under the names of older programs.
fn names() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    std::fs::copy(format!("{LABELS}/config.json"), folder.path().join("config.json"))?;
    let own = Safetensors::open_folder(Path::new(LABELS))?;
    let tensors = own.names().map(|name| {
        let tensor = own.get(name).expect("it is there");
        let old = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        NewTensor {
            name: old.replace("LayerNorm.bias", "LayerNorm.beta"),
            dtype: lopper::tensor::DType::Bf16,
            shape: tensor.shape.clone(),
            data: Box::new(move || Ok(tensor.bytes()?.to_vec())),
        }
    });
    write_folder(folder.path(), tensors.collect(), 1 << 30)?;
    let (again, weights) = (checkpoint(folder.path())?, Checkpoint::open(LABELS)?);
    assert_eq!(scores(&again)?, scores(&weights)?);
    Ok(())
}

/// A fresh head on an encoder: labels begin alike, the pooler is one that can learn; a pooler that is there stays.
fn fresh_heads() -> Result<(), Failed> {
    let (bare, whole) = (Checkpoint::open(BERT)?, Checkpoint::open(LABELS)?);
    let names = ["up", "down"].map(String::from);
    let readout = Readout::scores(bare.config().family.scored_at, &names);
    assert_eq!(readout.pooling, Pooling::First);
    let headed = |weights, fresh, seed| Headed::new(weights, &readout, fresh, seed);
    let values = |weights: &dyn Weights, name: &str| {
        let spec = weights.specs().iter().find(|spec| spec.name == name);
        Ok::<_, Failed>(weights.load(spec.ok_or_else(|| name.to_string())?)?.to_f32())
    };
    let zero = headed(&bare, FreshHead::Zero, 1)?;
    assert_eq!(scores(&zero)?, [0.0; 6]);
    let pooler = values(&zero, "pooler.dense.weight")?;
    let squares: f32 = pooler.iter().map(|value| value * value).sum::<f32>() / 64.0;
    assert!((squares - 1.0).abs() < 0.2, "of variance 1 / 65: {squares}");
    assert!(values(&zero, "pooler.dense.bias")?.iter().all(|bias| *bias == 0.0));
    assert!(pooler != values(&headed(&bare, FreshHead::Zero, 2)?, "pooler.dense.weight")?);
    let normal = headed(&whole, FreshHead::Normal, 1)?;
    assert!(scores(&normal)?.iter().all(|score| *score != 0.0));
    for name in ["pooler.dense.weight", "pooler.dense.bias"] {
        assert_eq!(values(&normal, name)?, values(&whole, name)?, "{name}");
    }
    assert_eq!(values(&normal, "classifier.weight")?.len(), 2 * 64, "another classifier");
    Ok(())
}

/// The choices of a task among a head's labels.
fn choices() -> Result<(), Failed> {
    let item = |choices: &[&str]| Item {
        choices: choices.iter().map(|text| Choice::new(*text)).collect(),
        ..Item::default()
    };
    let labels = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let (three, own) =
        (item(&["negative", "neutral", "positive"]), ["Positive", "NEGATIVE", "neutral"]);
    assert_eq!(label_places(&three, &labels(&own)), Ok(vec![1, 2, 0]), "whatever the case");
    let exact = ["Negative", "negative", "neutral", "positive"];
    assert_eq!(label_places(&three, &labels(&exact)), Ok(vec![1, 2, 3]), "as written, first");
    let unnamed = ["LABEL_0", "LABEL_1", "LABEL_2"];
    assert_eq!(label_places(&three, &labels(&unnamed)), Ok(vec![0, 1, 2]), "by their numbers");
    assert_eq!(label_places(&item(&["no", "yes"]), &labels(&unnamed)), Err("no"), "not so many");
    assert_eq!(label_places(&three, &labels(&["negative", "positive"])), Err("neutral"));
    Ok(())
}

const DAYS: &str = "{\"text\": \"rainy day\", \"label\": \"no\"}\n{\"text\": \"sunny sunny day\", \"label\": \"yes\"}\n\
     {\"text\": \"rain\", \"label\": \"no\"}\n{\"text\": \"sun day sun\", \"label\": \"yes\"}\n";

/// A classifier from an encoder, by all weights and by factors, from JSON lines and from a table.
fn tuning() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    with_words(&folder.join("bert"), BERT)?;
    std::fs::write(folder.join("days.jsonl"), DAYS)?;
    std::fs::write(
        folder.join("days.csv"),
        "label,text\nNo,rainy day\nYes,sunny sunny day\n1,rain\n0,sun day sun\n",
    )?;
    let tune = |model: &str, rest: &str| {
        let common = "--length 8 --warmup 0 --no-eval";
        succeeds(folder, &format!("tune {model} {common} {rest}"))
    };
    tune(
        "bert",
        "--method full --score-head zero --labels no,yes --data days.jsonl --held-out 0 --batch 4 --steps 6 --rate 0.003 --formats hf --out full",
    )?;
    let training = read_json(folder.join("full/training.json"))?;
    assert_eq!(training["loss"], json!("cross-entropy of labels, nats a text"));
    let loss =
        |training: &Value, at: usize| training["steps"][at]["loss"].as_f64().unwrap_or(f64::NAN);
    assert!((loss(&training, 0) - 2f64.ln()).abs() < 1e-6, "{training}");
    assert!(loss(&training, 5) < 0.5 * loss(&training, 0), "{training}");
    let full = checkpoint(&folder.join("full/hf"))?;
    let before = Checkpoint::open(BERT)?;
    for spec in before.specs() {
        // Every tensor but what keys have in common.
        let moved = before.load(spec)?.to_f32() != full.load(spec)?.to_f32();
        assert!(moved || spec.name.ends_with("key.bias"), "{}", spec.name);
    }
    // It goes on from a head that is there; labels are those of the head, whatever the case of their letters, or numbers.
    tune(
        "full/hf",
        "--method lora --rank 2 --data days.csv --held-out 1 --batch 3 --steps 2 --rate 0.01 --formats packed,hf --out lora",
    )?;
    let (lora, again) =
        (checkpoint(&folder.join("lora/packed"))?, checkpoint(&folder.join("lora/hf"))?);
    for name in
        ["encoder.layer.0.attention.self.query.weight", "pooler.dense.bias", "classifier.weight"]
    {
        let of = |model: &Checkpoint| {
            let spec = model.specs().iter().find(|spec| spec.name == name).expect("a tensor");
            model.load(spec).map(|packed| packed.to_f32())
        };
        assert!(of(&lora)? != of(&full)?, "{name} is learned");
        assert_close(name, &of(&again)?, &of(&lora)?, Within::Norm(1e-3));
    }
    let training = read_json(folder.join("lora/training.json"))?;
    assert!(training["looks"][0]["accuracy"].is_number(), "{training}");
    let card = std::fs::read_to_string(folder.join("lora/README.md"))?;
    assert!(card.contains("pipeline_tag: \"text-classification\""), "{card}");
    Ok(())
}

/// Texts without a prompt are read between the vocabulary's own tokens; the label with the highest score is the answer.
fn answers() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    with_words(&folder.join("bert"), LABELS)?;
    let lines =
        ["rainy day@positive", "taxes taxes day@negative", "sunny@neutral", "rain@negative"];
    std::fs::write(folder.join("bank.txt"), lines.join("\n"))?;
    let eval = "eval bert --task phrasebank:bank.txt --samples s.jsonl --json=-";
    let found = &succeeds(folder, eval)?.json()?["tasks"]["bank"];
    let texts: [&[u32]; 4] =
        [&[2, 4, 5, 8, 3], &[2, 9, 10, 9, 10, 8, 3], &[2, 6, 7, 3], &[2, 4, 3]];
    let weights = checkpoint(&folder.join("bert"))?;
    let device = Device::Cpu;
    let scores = load(&device, &weights)?.scores(&pass(&device), &texts, &mut |_, _| {})?;
    let right = scores.chunks_exact(3).zip([0, 1, 2, 1]).filter(|(scores, answer)| {
        let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        scores[*answer] >= most
    });
    let acc = right.count() as f64 / 4.0;
    assert_eq!((&found["acc"], &found["n"]), (&json!(acc), &json!(4)), "{found}");
    assert_eq!(found["labels"], json!(["negative", "neutral", "positive"]), "{found}");
    let samples = std::fs::read_to_string(folder.join("s.jsonl"))?;
    assert!(samples.contains("rainy day") && !samples.contains("Sentence:"), "{samples}");
    // A file with labels of its own has all those that it names for choices.
    let lines = [
        ("rainy day", "Positive"),
        ("taxes taxes day", "Negative"),
        ("sunny", "Neutral"),
        ("rain", "Negative"),
    ];
    let table: String = lines.iter().map(|(text, label)| format!("{label},{text}\n")).collect();
    std::fs::write(folder.join("own.csv"), format!("label,text\n{table}"))?;
    let own = succeeds(folder, "eval bert --task labelled:own.csv --json=-")?.json()?;
    assert_eq!(own["tasks"]["own"]["acc"], found["acc"], "{own}");
    std::fs::write(folder.join("one.jsonl"), "{\"text\": \"rain\", \"label\": \"positive\"}\n")?;
    lopper(folder, "eval bert --task labelled:one.jsonl")?.refused(2, "two labels or more");
    // Other names of the same labels, and a head without names.
    std::fs::write(folder.join("tweets.csv"), "text,label\nrainy day,1\nsunny,0\n")?;
    let tweets = "eval bert --task twitter-financial:tweets.csv";
    lopper(folder, tweets)?
        .refused(2, "choices that the model's head scores: positive, negative, neutral");
    succeeds(folder, &format!("{tweets} --label bearish=negative,bullish=positive"))?;
    lopper(folder, &format!("{tweets} --label bear=negative"))?.refused(2, "choices of the tasks");
    // Scores of the text, by tokens and by text.
    succeeds(folder, "logits bert --tokens 2,4,5,8,3 --out a.safetensors")?;
    succeeds(folder, "logits bert --prompt Rainy_day --out b.safetensors")?;
    for (file, own) in [("a", &scores[..3]), ("b", &[][..])] {
        let stored =
            Known::open(&folder.join(file).with_extension("safetensors").to_string_lossy())?;
        assert_eq!(stored.shape("logits")?, [1, 1, 3]);
        if !own.is_empty() {
            assert_close("logits", &stored.floats("logits")?, own, Within::Norm(1e-5));
        }
    }
    Ok(())
}

/// Factors with a head beside them, on what they were learned of, score as what they were merged into; of a decoder too.
fn adapters() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    with_words(&folder.join("bert"), BERT)?;
    std::fs::write(folder.join("days.jsonl"), DAYS)?;
    let days = "--data days.jsonl --held-out 0 --length 8 --batch 4 --warmup 0";
    for (model, tokens) in [("bert", "2,4,5,8,3"), (NANO, "5,6,7")] {
        let tune =
            "--method lora --rank 2 --score-head normal --labels yes,no --steps 2 --rate 0.02";
        succeeds(
            folder,
            &format!("tune {model} {tune} {days} --no-eval --formats packed --out o --force"),
        )?;
        let score = |model: &str, out: &str| {
            succeeds(
                folder,
                &format!("logits {model} --tokens {tokens} --out {out}.safetensors --force"),
            )?;
            Known::open(&folder.join(out).with_extension("safetensors").to_string_lossy())?
                .floats("logits")
        };
        let merged = score("o/packed", "merged")?;
        let beside = score(&format!("{model} --lora o/adapter"), "beside")?;
        // Merged weights are rounded to the model's own type, bf16 perhaps.
        assert_close(model, &beside, &merged, Within::Norm(1e-2));
        let stored = Safetensors::open(lopper::formats::Source::open(
            &folder.join("o/adapter/adapter_model.safetensors"),
        )?)?;
        let has = |name: &str| stored.get(&format!("base_model.model.{name}")).is_some();
        match model {
            "bert" => assert!(
                has("classifier.bias")
                    && has("bert.pooler.dense.weight")
                    && has("bert.encoder.layer.0.output.dense.lora_A.weight")
            ),
            _ => assert!(has("score.weight")),
        }
        // In another order than the data's numbers: their names are kept.
        let task = "--task headlines:days.jsonl --json=-";
        let own = succeeds(folder, &format!("eval {model} --lora o/adapter {task}"))?.json()?;
        let whole = succeeds(folder, &format!("eval o/packed {task}"))?.json()?;
        assert_eq!(own["tasks"]["days"]["acc"], whole["tasks"]["days"]["acc"], "{own} {whole}");
    }
    for (arguments, said) in [
        (
            "generate embedded:nano-llama --lora o/adapter --prompt a",
            "--lora & eval --task takes others",
        ),
        (
            "eval embedded:nano-llama --lora o/adapter --ppl embedded:heldout-2026 --max-tokens 64 --ctx 32",
            "foretells tokens",
        ),
        (
            "tune embedded:nano-llama --method lora --begin o/adapter --batch 1 --data days.jsonl --out p",
            "go on with the merged model",
        ),
        ("eval bert --lora o/adapter --task headlines:days.jsonl", "a linear layer of a bert"),
    ] {
        lopper(folder, &format!("{arguments} --device cpu"))?.refused(2, said);
    }
    Ok(())
}

/// Factors with a head of three labels that PEFT itself wrote, and the scores that PEFT has with them, in float64.
fn opens_what_peft_wrote() -> Result<(), Failed> {
    let fixture = Path::new("assets/fixtures/peft-labels");
    let (adapters, nano) = (Adapters::read(fixture)?, Checkpoint::open(NANO)?);
    let headed = adapters.headed(&nano)?.ok_or("a head")?;
    let labels = &headed.config().readout.as_ref().ok_or("labels")?.labels;
    assert_eq!(*labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let known = Known::open(&fixture.join("expected.safetensors").to_string_lossy())?;
    let merged = Merged::new(&headed, &adapters, &Device::Cpu)?;
    let (ids, device) = (known.words("input_ids")?, Device::Cpu);
    let found = load(&device, &merged)?.scores(&pass(&device), &[&ids], &mut |_, _| {})?;
    // Merged weights are rounded to the model's own type.
    assert_close("scores", &found, &known.floats("scores")?, Within::Norm(2e-3));
    let bert = Checkpoint::open(BERT)?;
    let error = adapters.headed(&bert).err().ok_or("another head")?.to_string();
    assert!(error.contains("score.weight") && error.contains("classifier.weight"), "{error}");
    Ok(())
}

/// Quantized, pruned and merged, its head stays as it is.
fn smaller() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    with_words(&folder.join("bert"), LABELS)?;
    succeeds(folder, "quantize bert --bits 4 --no-eval --formats packed --out q")?;
    succeeds(folder, "merge bert --with q/packed --no-eval --formats packed --out m")?;
    // Methods that look at what goes into layers, of which the first of the feed-forward has none beside it.
    std::fs::write(
        folder.join("days.txt"),
        "rainy day sunny day taxes sunny rain day ".repeat(20),
    )?;
    let calibrated = "--calib days.txt --samples 4 --length 16 --no-eval --formats packed";
    succeeds(folder, &format!("quantize bert --method gptq --bits 4 {calibrated} --out g"))?;
    succeeds(folder, &format!("prune bert --method wanda --pattern 2:4 {calibrated} --out w"))?;
    let (own, q) = (checkpoint(&folder.join("bert"))?, checkpoint(&folder.join("q/packed"))?);
    let pruned = checkpoint(&folder.join("w/packed"))?;
    for spec in own.specs().iter().filter(|spec| spec.role == Role::Linear) {
        let values = pruned.load(spec)?.to_f32();
        let most =
            values.chunks_exact(4).map(|four| four.iter().filter(|v| **v != 0.0).count()).max();
        assert_eq!(most, Some(2), "{}", spec.name);
    }
    let gptq = checkpoint(&folder.join("g/packed"))?;
    assert!(gptq.total_stored_bytes() == q.total_stored_bytes(), "the same types");
    let merged = checkpoint(&folder.join("m/packed"))?;
    for name in ["pooler.dense.weight", "classifier.weight", "classifier.bias"] {
        let of = |model: &Checkpoint| {
            let spec = model.specs().iter().find(|spec| spec.name == name).expect("a tensor");
            model.load(spec).map(|packed| packed.to_f32())
        };
        assert_eq!(of(&own)?, of(&q)?, "{name}");
        assert_close(name, &of(&merged)?, &of(&own)?, Within::Norm(1e-3));
    }
    assert!(q.total_stored_bytes() < own.total_stored_bytes());
    // The same labels in another order are others.
    with_words(&folder.join("other"), LABELS)?;
    let mut config = read_json(folder.join("other/config.json"))?;
    config["id2label"] = json!({"0": "negative", "1": "positive", "2": "neutral"});
    std::fs::write(folder.join("other/config.json"), config.to_string())?;
    lopper(folder, "merge bert --with other --no-eval --out x")?.refused(
        2,
        "model for positive, negative, neutral & other for negative, positive, neutral",
    );
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    with_words(&folder.path().join("bert"), LABELS)?;
    with_words(&folder.path().join("encoder"), BERT)?;
    for (arguments, said) in [
        ("generate bert --prompt a", "one that scores labels (positive, negative, neutral)"),
        ("embed bert --text a", "a sentence encoder"),
        ("eval bert --ppl embedded:heldout-2026", "eval --task measures it"),
        ("eval bert --task headlines", "choices that the model's head scores"),
        ("eval bert --preferences headlines", "one of 3 labels"),
        (
            "tune bert --data embedded:headlines --length 8 --out o",
            "a label out of positive, negative, neutral",
        ),
        (
            "tune encoder --data embedded:headlines --length 8 --out o",
            "--score-head puts one on it",
        ),
        (
            "distill bert --teacher bert --data embedded:calibration --length 8 --out o",
            "eval --task measures it",
        ),
        ("prune bert --method depth --ratio 0.5 --no-eval --out o", "tokens see none behind them"),
        ("transform bert --method awq --then q4_0 --no-eval --out o", "a model without an encoder"),
    ] {
        lopper(folder.path(), &format!("{arguments} --device cpu"))?.refused(2, said);
    }
    let out = format!(
        "tune {NANO} --score-head zero --labels a,b --data embedded:headlines --length 8 --out o"
    );
    lopper(folder.path(), &out)?.refused(2, "a label out of a, b");
    Ok(())
}
