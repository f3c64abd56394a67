//! Tokens that are drawn: as often as their probabilities say, from those that filters leave, the same for a seed, and independently of
//! each other.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random};
use lopper::kernels::logits::draw::{Chances, draw};
use lopper::kernels::logits::probabilities::{Filter, Filters, probabilities};
use lopper::model::{
    Cache, Caches, Checkpoint, Decoder, Ensemble, Model, Sampler, Sampling, generate,
};
use lopper::tensor::DType;
use lopper::text::StopStrings;

use crate::machine::on_each;
use crate::models::{load, pass};
use crate::numbers::chi_square_fits;
use crate::program::{NANO, TINY, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("sampling": stop_strings, stops_over_token_borders, flags);
    trials.extend(on_each("sampling::draws_follow_their_distribution", follow));
    trials.extend(on_each("sampling::draws_are_independent", independent));
    trials.extend(on_each("sampling::seeds_and_rows", seeds_and_rows));
    trials.extend(on_each("sampling::repetition_penalty", repetition_penalty));
    trials
}

const ALL: Filter = Filter { temperature: 1.0, top_k: usize::MAX, top_p: 1.0, min_p: 0.0 };

/// The distribution that filters leave, by a sort and plain sums: temperature, top-k, top-p, min-p.
pub fn filtered(logits: &[f32], filter: &Filter) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    order.truncate(filter.top_k);
    let highest = f64::from(logits[order[0]]);
    let weight = |token: &usize| ((f64::from(logits[*token]) - highest) / filter.temperature).exp();
    let total: f64 = order.iter().map(weight).sum();
    let mut kept = 0.0;
    let mut stays: Vec<usize> = Vec::new();
    for token in &order {
        if filter.top_p < 1.0 && kept >= filter.top_p * total {
            break;
        }
        kept += weight(token);
        if weight(token) >= filter.min_p {
            stays.push(*token);
        }
    }
    let total: f64 = stays.iter().map(weight).sum();
    let mut found = vec![0.0; logits.len()];
    stays.iter().for_each(|token| found[*token] = weight(token) / total);
    found
}

/// 20 000 draws of each filter and of all together.
fn follow(device: &Device) -> Result<(), Failed> {
    const DRAWS: usize = 20_000;
    let logits = Random::new(5).values(40, 3.0);
    let filters = [
        ALL,
        Filter { temperature: 0.6, ..ALL },
        Filter { top_k: 7, ..ALL },
        Filter { top_p: 0.7, ..ALL },
        Filter { min_p: 0.15, ..ALL },
        Filter { temperature: 1.4, top_k: 25, top_p: 0.9, min_p: 0.05 },
    ];
    for (seed, filter) in filters.iter().enumerate() {
        let one = HostTensor::from_f32(DType::F32, &[1, logits.len()], &logits);
        let filters = Filters::upload(device, &[*filter], logits.len())?;
        let (row, _) = probabilities(device, &device.upload(&one, "logits")?, &filters)?;
        let row = device.read(&row)?.to_f32();
        let exact = filtered(&logits, filter);
        for (token, (found, exact)) in row.iter().zip(&exact).enumerate() {
            let close =
                (f64::from(*found) - exact).abs() < 1e-6 && (*found > 0.0) == (*exact > 0.0);
            assert!(close, "{filter:?}, token {token}: {found}, not {exact}");
        }
        let rows = HostTensor::from_f32(DType::F32, &[DRAWS, logits.len()], &row.repeat(DRAWS));
        let rows = device.upload(&rows, "probabilities")?;
        let places = device.upload(&HostTensor::from_u32(&[DRAWS], &vec![9; DRAWS]), "places")?;
        let chances = Chances::consecutive(device, seed as u64, DRAWS)?;
        let drawn = device.read(&draw(device, &rows, &places, &chances)?)?;
        let mut counts = vec![0; logits.len()];
        drawn.view().u32s().iter().for_each(|token| counts[*token as usize] += 1);
        chi_square_fits(&counts, &exact).map_err(|found| format!("{filter:?}: {found}"))?;
    }
    Ok(())
}

/// Draws at two places that follow each other, in neighbouring rows and by neighbouring seeds, are drawn independently.
fn independent(device: &Device) -> Result<(), Failed> {
    const ROWS: usize = 20_000;
    let weights = [0.5f32, 0.25, 0.15, 0.1];
    let rows = HostTensor::from_f32(DType::F32, &[ROWS, 4], &weights.repeat(ROWS));
    let rows = device.upload(&rows, "weights")?;
    let drawn = |place: u32, seed: u64| -> Result<Vec<u32>, Failed> {
        let places = HostTensor::from_u32(&[ROWS], &vec![place; ROWS]);
        let places = device.upload(&places, "places")?;
        let chances = Chances::consecutive(device, seed, ROWS)?;
        Ok(device.read(&draw(device, &rows, &places, &chances)?)?.words)
    };
    let first = drawn(100, 3)?;
    let (place, seed) = (drawn(101, 3)?, drawn(100, 4)?);
    let with = |other: &[u32]| first.iter().copied().zip(other.iter().copied()).collect();
    let rows = first.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    let pairs: [(&str, Vec<(u32, u32)>); 3] =
        [("place", with(&place)), ("seed", with(&seed)), ("row", rows)];
    for (what, pairs) in pairs {
        let mut counts = vec![0; 16];
        pairs.iter().for_each(|(a, b)| counts[(4 * a + b) as usize] += 1);
        let exact: Vec<f64> =
            weights.iter().flat_map(|a| weights.map(|b| f64::from(*a) * f64::from(b))).collect();
        chi_square_fits(&counts, &exact).map_err(|found| format!("next {what}: {found}"))?;
    }
    Ok(())
}

/// The same seed gives the same tokens, another others; a row of a batch draws as a text alone whose seed is the row's.
fn seeds_and_rows(device: &Device) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(NANO)?;
    let model = load(device, &checkpoint)?;
    let pass = pass(device);
    let prompt: Vec<u32> = (0..9).map(|id| 31 * id % 290).collect();
    let sampling = |seed| Sampling { top_k: 50, top_p: 0.95, ..Sampling::at(1.2, seed) };
    let made = |seed: u64| -> Result<Vec<u32>, Failed> {
        Ok(generate(&model, &pass, &prompt, 12, sampling(seed), |_| false, |_| Ok(true))?.tokens)
    };
    assert_eq!(made(7)?, made(7)?);
    assert_ne!(made(7)?, made(8)?);
    // Three rows of one text: the first as the text alone, the others otherwise.
    let ensemble = Ensemble::from(&model);
    let (last, before) = prompt.split_last().ok_or("a prompt")?;
    let mut cache = Cache::new(device, model.config(), 3, prompt.len() + 12, pass.compute)?;
    model.hidden(&pass, &before.repeat(3), &cache)?;
    cache.advance(device, before.len())?;
    let texts = [&prompt[..]; 3];
    let sampler = Sampler::new(device, sampling(7), ensemble.columns(), &texts)?;
    let caches = Caches::from(cache);
    let mut decoder = Decoder::sampling(ensemble, pass, caches, sampler, &[*last; 3])?;
    let mut rows = vec![Vec::new(); 3];
    decoder.run(12, &mut |chosen| {
        rows.iter_mut().zip(chosen).for_each(|(row, chosen)| row.push(chosen.token));
        Ok(true)
    })?;
    assert_eq!(rows[0], made(7)?);
    assert!(rows[0] != rows[1] && rows[1] != rows[2], "{rows:?}");
    Ok(())
}

/// Greedy tokens under a penalty, beside those that plain arithmetic on logits of whole passes takes.
fn repetition_penalty(device: &Device) -> Result<(), Failed> {
    let model: Model = load(device, &Checkpoint::open(NANO)?)?;
    let pass = pass(device);
    let prompt: Vec<u32> = (0..8).map(|id| 17 * id % 290).collect();
    let sampling = Sampling { repetition_penalty: 1.4, ..Sampling::GREEDY };
    let made = generate(&model, &pass, &prompt, 20, sampling, |_| false, |_| Ok(true))?.tokens;
    let mut text = prompt.clone();
    for token in &made {
        let (_, logits) = model.trace(&pass, &text, 1, false)?;
        let columns = model.config().vocab_size;
        let mut last = logits.to_f32().split_off((text.len() - 1) * columns);
        for (seen, logit) in last.iter_mut().enumerate() {
            if text.contains(&(seen as u32)) {
                *logit = if *logit < 0.0 { *logit * 1.4 } else { *logit / 1.4 };
            }
        }
        let highest = last.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(highest - last[*token as usize] < 1e-4, "{token} after {text:?}");
        text.push(*token);
    }
    let plain = generate(&model, &pass, &prompt, 20, Sampling::GREEDY, |_| false, |_| Ok(true))?;
    assert_ne!(plain.tokens, made);
    Ok(())
}

fn stop_strings() -> Result<(), Failed> {
    let cut = |stops: &[&str], pieces: &[&str]| {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut stops = StopStrings::new(&stops);
        let text: String = pieces.iter().map(|piece| stops.push(piece)).collect();
        (text + &stops.finish(), stops.found())
    };
    assert_eq!(cut(&["END"], &["one E", "N", "D two"]), ("one ".into(), true));
    assert_eq!(cut(&["END"], &["one E", "N", " two"]), ("one EN two".into(), false));
    assert_eq!(cut(&["END"], &["one EN"]), ("one EN".into(), false));
    assert_eq!(cut(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
    assert_eq!(cut(&["xyz", "é\n"], &["caf", "é", "\nxyz"]), ("caf".into(), true));
    assert_eq!(cut(&["xyz", "z"], &["wxy", "z"]), ("w".into(), true));
    assert_eq!(cut(&[], &["xyz", "z"]), ("xyzz".into(), false));
    // What is certain is not held back.
    let mut stops = StopStrings::new(&["\n\n".into()]);
    assert_eq!((stops.push("a\n"), stops.push("b")), ("a".into(), "\nb".into()));
    Ok(())
}

/// A stop string that begins within one token and ends within another: the text ends before it.
fn stops_over_token_borders() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let greedy = format!("generate {TINY} --prompt People -n 24 --json=-");
    let plain = succeeds(&folder, &greedy)?.json()?;
    assert_eq!(plain["stop_reason"], "length");
    let text = plain["text"].as_str().ok_or("a text")?.to_string();
    let tokenizer = Checkpoint::open(TINY)?.tokenizer()?;
    let first = plain["tokens"][5].as_u64().ok_or("a token")? as u32;
    let end = tokenizer.decode(&[first], true)?.trim().to_string();
    let begin = text.find(&end).ok_or("its text")? + end.len() - 1;
    let stop: String = text[begin..].chars().take(3).collect();
    let mut command = crate::program::command(folder.path(), &greedy);
    let run = command.args(["--device", "cpu", "--stop", "never", "--stop", &stop]).output()?;
    let cut = crate::program::Run::from(run).json()?;
    let place = text.find(&stop).ok_or("the stop string")?;
    assert_eq!((&cut["text"], &cut["stop_reason"]), (&text[..place].into(), &"stop_string".into()));
    assert!(cut["tokens"].as_array().map_or(0, Vec::len) < 24, "{cut}");
    Ok(())
}

/// Values that make no sense are refused by the flag's name; filters of what is not drawn are noted.
fn flags() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (flag, value) in [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-k", "-3"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--min-p", "-0.1"),
        ("--min-p", "2"),
        ("--repetition-penalty", "0"),
        ("--stop", ""),
    ] {
        let mut command =
            crate::program::command(folder.path(), &format!("generate {NANO} --prompt The -n 2"));
        let run = command.args(["--device", "cpu", flag, value]).output()?;
        crate::program::Run::from(run).refused(2, &format!("error: {flag}"));
    }
    let noted = format!("generate {NANO} --prompt The -n 2 --top-k 5");
    let noted = succeeds(&folder, &noted)?.err;
    assert!(noted.contains("note: --top-k changes nothing at --temperature 0"), "{noted}");
    Ok(())
}
