//! Logits of several models as one: proxy tuning and averages.

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::model::{Checkpoint, Ensemble, Model, Pass, Sampling, Steering, generate};

use crate::machine::on_each;
use crate::models::{load, pass};
use crate::numbers::relative_error;
use crate::program::{NANO, SHORT, TEXT, TINY, lopper, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("ensembles": flags, evaluated);
    trials.extend(on_each("ensembles::steered_and_averaged", combined));
    trials
}

/// Logits of some tokens, by each model of an ensemble, as one.
fn logits(ensemble: &Ensemble<'_>, pass: &Pass<'_>, ids: &[u32]) -> Result<Vec<f32>, Failed> {
    let mut all = Vec::new();
    for model in ensemble.models() {
        let (_, logits) = model.trace(pass, ids, 1, false)?;
        all.push(pass.device.upload(&logits, "logits")?);
    }
    Ok(pass.device.read(&ensemble.combine(pass.device, all)?)?.to_f32())
}

/// An expert that is its anti-expert changes no bit; steered by itself less the base, the base becomes the expert; averages are means;
/// and tokens are made by the sums.
fn combined(device: &Device) -> Result<(), Failed> {
    let (base, other): (Model, Model) =
        (load(device, &Checkpoint::open(TINY)?)?, load(device, &Checkpoint::open(NANO)?)?);
    let pass = pass(device);
    let ids: Vec<u32> = (0..12).map(|id| 31 * id % 290).collect();
    let plain = logits(&Ensemble::from(&base), &pass, &ids)?;
    let expert = logits(&Ensemble::from(&other), &pass, &ids)?;
    let steered = |expert, anti_expert, alpha| {
        Ensemble::from(&base).steered(Steering { expert, anti_expert, alpha })
    };
    let unchanged = steered(&other, &other, 1.7);
    assert!(logits(&unchanged, &pass, &ids)? == plain, "an expert beside itself");
    let replaced = logits(&steered(&other, &base, 1.0), &pass, &ids)?;
    assert!(relative_error(&replaced, &expert) < 1e-6, "the base less itself");
    let half = logits(&steered(&other, &base, 0.5), &pass, &ids)?;
    let middle: Vec<f32> = plain.iter().zip(&expert).map(|(a, b)| (a + b) / 2.0).collect();
    assert!(relative_error(&half, &middle) < 1e-6, "half of the way");
    let average = Ensemble::from(&base).averaged_with(&other);
    assert!(relative_error(&logits(&average, &pass, &ids)?, &middle) < 1e-6, "two");
    let three = logits(&average.clone().averaged_with(&other), &pass, &ids)?;
    let mean: Vec<f32> = plain.iter().zip(&expert).map(|(a, b)| (a + 2.0 * b) / 3.0).collect();
    assert!(relative_error(&three, &mean) < 1e-6, "three");
    // Of the first tokens alone.
    let few = logits(&Ensemble::from(&base).limited(1000), &pass, &ids)?;
    let rows = plain.chunks_exact(base.config().vocab_size);
    assert!(few == rows.flat_map(|row| &row[..1000]).copied().collect::<Vec<_>>());

    let text = |ensemble: Ensemble<'_>| -> Result<Vec<u32>, Failed> {
        Ok(generate(ensemble, &pass, &ids, 12, Sampling::GREEDY, |_| false, |_| Ok(true))?.tokens)
    };
    assert_eq!(text(unchanged)?, text(Ensemble::from(&base))?);
    assert_eq!(text(steered(&other, &base, 1.0))?, text(Ensemble::from(&other))?);
    let mixed = text(average.clone())?;
    for (place, token) in mixed.iter().enumerate() {
        let read = [&ids[..], &mixed[..place]].concat();
        let row = logits(&average, &pass, &read)?.split_off((read.len() - 1) * average.columns());
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(highest - row[*token as usize] < 1e-4, "token {place} of the average");
    }
    Ok(())
}

/// The flags of `generate`.
fn flags() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = |model: &str, flags: &str| {
        let command = format!("generate {model} --prompt People -n 10 --json=- {flags}");
        succeeds(&folder, &command)?.json()
    };
    let (tiny, nano) = (run(TINY, "")?, run(NANO, "")?);
    let same = run(TINY, &format!("--expert {NANO} --anti-expert {NANO} --alpha 2"))?;
    assert_eq!(same["tokens"], tiny["tokens"]);
    assert_eq!(
        (&same["ensemble"]["alpha"], &same["ensemble"]["expert"]),
        (&2.0.into(), &NANO.into())
    );
    let replaced = run(TINY, &format!("--expert {NANO} --anti-expert {TINY}"))?;
    assert_eq!(replaced["tokens"], nano["tokens"]);
    let drafted = format!("--expert {NANO} --anti-expert {TINY} --draft {NANO}");
    assert_eq!(run(TINY, &drafted)?["tokens"], nano["tokens"]);
    Ok(())
}

/// `eval` of a text and of tasks: beside itself an expert changes nothing, less the base it is what is measured.
fn evaluated() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let eval = |model: &str, flags: &str| {
        let tasks = "--task headlines,cloze --limit 6 --shots 1";
        let command = format!("eval {model} --ppl {TEXT} {SHORT} {tasks} --json=- {flags}");
        succeeds(&folder, &command)?.json()
    };
    let (tiny, nano) = (eval(TINY, "")?, eval(NANO, "")?);
    let same = eval(TINY, &format!("--expert {NANO} --anti-expert {NANO} --alpha 0.5"))?;
    assert_eq!((&same["perplexity"], &same["tasks"]), (&tiny["perplexity"], &tiny["tasks"]));
    assert!(tiny.get("ensemble").is_none() && same["ensemble"]["alpha"] == 0.5, "{same}");
    let replaced = eval(TINY, &format!("--expert {NANO} --anti-expert {TINY}"))?;
    let value = |json: &serde_json::Value| json["perplexity"]["value"].as_f64().unwrap_or(f64::NAN);
    assert!((value(&replaced) / value(&nano) - 1.0).abs() < 1e-5, "{replaced} {nano}");
    assert_eq!(replaced["tasks"]["cloze"]["acc"], nano["tasks"]["cloze"]["acc"]);
    // The average of two models reads a text better than the worse of them.
    let average = eval(TINY, &format!("--ensemble {NANO}"))?;
    assert!(value(&average) < value(&nano) && value(&average) != value(&tiny), "{average}");
    let refused = format!("eval {TINY} --ppl {TEXT} --base {NANO} --ensemble {NANO}");
    lopper(&folder, &refused)?.refused(2, "--ensemble & --base");
    Ok(())
}
