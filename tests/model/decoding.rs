//! Decoding by recorded steps, beside passes that are made anew for each token.

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::model::{Cache, Checkpoint, Decoder, Model, Pass, Sampling, generate};

use crate::machine::on_each;
use crate::models::{load, pass};
use crate::program::NANO;

pub fn trials() -> Vec<Trial> {
    on_each("decoding::as_by_passes", as_by_passes).into()
}

/// The likeliest token of each row.
fn largest(logits: &[f32], rows: usize) -> Vec<u32> {
    let columns = logits.len() / rows;
    let of = |line: &[f32]| {
        let best = |best: usize, next: usize| if line[next] > line[best] { next } else { best };
        (0..columns).fold(0, best) as u32
    };
    logits.chunks_exact(columns).map(of).collect()
}

/// A cache that holds a prompt, the tokens after it, and for each further step its tokens.
type Made = (Cache, Vec<u32>, Vec<Vec<u32>>);

/// Tokens by a pass each, after rows of a prompt of one length.
fn by_passes(
    model: &Model,
    pass: &Pass<'_>,
    prompt: &[u32],
    sequences: usize,
    count: usize,
) -> Result<Made, Failed> {
    let length = prompt.len() / sequences;
    let capacity = length + count;
    let new = || Cache::new(pass.device, model.config(), sequences, capacity, pass.compute);
    let (mut cache, mut other) = (new()?, new()?);
    let step = |cache: &mut Cache, ids: &[u32]| -> Result<Vec<u32>, Failed> {
        let normed = model.hidden(pass, ids, cache)?;
        let logits = pass.device.read(&model.head(pass, &normed, 0..ids.len())?)?.to_f32();
        cache.advance(pass.device, ids.len() / sequences)?;
        let each = ids.len() / sequences;
        let all = largest(&logits, ids.len());
        Ok((0..sequences).map(|s| all[s * each + each - 1]).collect())
    };
    let first = step(&mut cache, prompt)?;
    step(&mut other, prompt)?;
    let (mut next, mut tokens) = (first.clone(), Vec::new());
    for _ in 1..count {
        next = step(&mut cache, &next)?;
        tokens.push(next.clone());
    }
    Ok((other, first, tokens))
}

/// One sequence and three, on past several of the depths at which a recording is made anew; what `generate` makes is the same, and it
/// stops where it is told to.
fn as_by_passes(device: &Device) -> Result<(), Failed> {
    let pass = pass(device);
    for name in [NANO, "assets/families/gemma3"] {
        let model = load(device, &Checkpoint::open(name)?)?;
        for sequences in [1, 3] {
            let prompt: Vec<u32> = (0..7 * sequences as u32).map(|id| 31 * id % 290).collect();
            let count = 30;
            let (cache, first, wanted) = by_passes(&model, &pass, &prompt, sequences, count)?;
            let mut found = Vec::new();
            let mut decoder = Decoder::new(&model, pass, cache, &first)?;
            // In two runs: the second goes on where the first ended.
            for steps in [5, count - 6] {
                decoder.run(steps, &mut |chosen| {
                    assert!(chosen.iter().all(|chosen| chosen.lse.is_finite()));
                    found.push(chosen.iter().map(|chosen| chosen.token).collect::<Vec<u32>>());
                    Ok(true)
                })?;
            }
            assert_eq!(found, wanted, "{name}, {sequences} sequences");
            assert_eq!(decoder.into_cache().lengths(), vec![7 + 29; sequences], "{name}");
            if sequences > 1 {
                continue;
            }
            let all: Vec<u32> = first.iter().copied().chain(wanted.concat()).collect();
            let made = |ends: &dyn Fn(u32) -> bool| {
                let greedy = Sampling::Greedy;
                generate(&model, &pass, &prompt, count, greedy, ends, |_| Ok(()))
            };
            assert_eq!(made(&|_| false)?.tokens, all, "{name}");
            let end = all[11];
            let place = all.iter().position(|token| *token == end).unwrap_or(0);
            assert_eq!(made(&|token| token == end)?.tokens, all[..place], "{name}");
        }
    }
    Ok(())
}
