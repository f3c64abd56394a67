//! Decoding by recorded steps, beside passes that are made anew for each token.

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::gpu::Options;
use lopper::methods::quantize::rtn::rtn;
use lopper::methods::quantize::{Grid, Scheme};
use lopper::model::{
    Cache, Checkpoint, Compute, Decoder, Model, Pass, Role, Sampling, TensorSpec, Weights,
    generate, generate_batch,
};
use lopper::tensor::{Packed, weight_type};

use crate::machine::{device, gpu_trial, on_each};
use crate::models::{MapWeights, load, pass};
use crate::program::{NANO, TINY};

pub fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = on_each("decoding::as_by_passes", as_by_passes).into();
    trials.extend(on_each("decoding::prompts_of_unlike_lengths", unlike));
    trials.push(gpu_trial("decoding::dispatches".into(), dispatches));
    trials
}

/// Dispatches of a token of each sequence behind a hundred others, so that attention is split over the keys.
fn dispatches_of(model: &Model, pass: &Pass<'_>, sequences: usize) -> Result<usize, Failed> {
    let mut cache = Cache::new(pass.device, model.config(), sequences, 128, pass.compute)?;
    cache.hold(pass.device, &vec![100; sequences])?;
    let mut decoder = Decoder::new(model, *pass, cache, &vec![7; sequences])?;
    decoder.run(1, &mut |_| Ok(true))?;
    decoder.dispatches().ok_or_else(|| "a recorded step".into())
}

/// A token takes few dispatches, each of which costs a large device as much as its work: the layers of a block with one input are one
/// product, and what that is rounded from is computed by what rounds it. Several sequences take no more.
fn dispatches() -> Result<(), Failed> {
    // However slow the device is just now, no call is cut.
    let device = device(Options { max_operations: Some(1e12), ..Options::default() })?;
    let half = device.capabilities().f16;
    let wide = if half { Compute::F16 } else { Compute::F32 };
    let bytes = Compute { activation_bytes: 1, ..wide };
    let original = Checkpoint::open(TINY)?;
    let scheme = |grid, ty| Some(Scheme { grid, bits: 4, group_size: 32, ty });
    for (what, rounded, computes) in [
        ("f16", None, vec![wide]),
        ("uint4m-g32", scheme(Grid::FloatMin, None), vec![Compute::F32, wide, bytes]),
        ("q4_k", scheme(Grid::SuperBlock, weight_type("q4_k")), vec![wide]),
    ] {
        let map = |spec: &TensorSpec, weight: Packed| match rounded {
            Some(scheme) if spec.role == Role::Linear && spec.layer < Some(2) => {
                rtn(&Device::Cpu, &weight, scheme, what)
            }
            _ => Ok(weight),
        };
        let whole = load(&device, &MapWeights(&original, &map))?;
        let of_layers = |layers: usize| {
            let mut config = whole.config().clone();
            config.blocks.truncate(layers);
            whole.with_blocks(config, whole.blocks()[..layers].to_vec())
        };
        for (compute, sequences) in computes.into_iter().flat_map(|c| [(c, 1), (c, 3)]) {
            let pass = Pass { device: &device, compute };
            let one = dispatches_of(&of_layers(1), &pass, sequences)?;
            let each = dispatches_of(&of_layers(2), &pass, sequences)? - one;
            let found =
                format!("{what}, {}: {each} a block, {} beside", compute.name(), one - each);
            assert!(each <= 9 && one - each <= 5, "{found}");
        }
    }
    dispatches_of_experts(&device)
}

/// However many experts a block has, their products are two calls.
fn dispatches_of_experts(device: &Device) -> Result<(), Failed> {
    let original = Checkpoint::open("embedded:tiny-mixtral")?;
    let scheme = Scheme { grid: Grid::FloatMin, bits: 4, group_size: 32, ty: None };
    let map = |spec: &TensorSpec, weight: Packed| match spec.role {
        Role::Linear => rtn(&Device::Cpu, &weight, scheme, &spec.name),
        _ => Ok(weight),
    };
    let rounded = MapWeights(&original, &map);
    let weights: [&dyn Weights; 2] = [&original, &rounded];
    for (weights, what) in weights.into_iter().zip(["f16", "uint4m-g32"]) {
        let whole = load(device, weights)?;
        let of_layers = |layers: usize| {
            let mut config = whole.config().clone();
            config.blocks.truncate(layers);
            whole.with_blocks(config, whole.blocks()[..layers].to_vec())
        };
        for sequences in [1, 3] {
            let pass = pass(device);
            let one = dispatches_of(&of_layers(1), &pass, sequences)?;
            let each = dispatches_of(&of_layers(2), &pass, sequences)? - one;
            assert!(each <= MOST_OF_EXPERTS, "{what}: {each} a block for {sequences}");
        }
    }
    Ok(())
}

/// Dispatches of a block with experts.
const MOST_OF_EXPERTS: usize = 13;

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
    for name in [NANO, "assets/families/gemma3", "embedded:tiny-mixtral"] {
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
                let greedy = Sampling::GREEDY;
                generate(&model, &pass, &prompt, count, greedy, ends, |_| Ok(true))
            };
            assert_eq!(made(&|_| false)?.tokens, all, "{name}");
            let end = all[11];
            let place = all.iter().position(|token| *token == end).unwrap_or(0);
            assert_eq!(made(&|token| token == end)?.tokens, all[..place], "{name}");
        }
    }
    Ok(())
}

/// Prompts of several lengths side by side go on as each does alone, and end when each has ended.
fn unlike(device: &Device) -> Result<(), Failed> {
    let pass = pass(device);
    for name in [NANO, "assets/families/gemma3"] {
        let model = load(device, &Checkpoint::open(name)?)?;
        let prompt = |length: u32| (0..length).map(|id| (31 * id + length) % 290).collect();
        let prompts: Vec<Vec<u32>> = [9, 1, 40, 23].map(prompt).into();
        let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        for sampling in [Sampling::GREEDY, Sampling { repetition_penalty: 1.2, ..Sampling::GREEDY }]
        {
            let alone = rows.iter().map(|prompt| {
                generate(&model, &pass, prompt, 12, sampling, |_| false, |_| Ok(true))
            });
            let alone = alone.collect::<Result<Vec<_>, _>>()?;
            let end = alone[0].tokens[5];
            let made =
                generate_batch(&model, &pass, &rows, 12, sampling, |_, token| Ok(token == end))?;
            for (row, (made, alone)) in made.iter().zip(&alone).enumerate() {
                let place = alone.tokens.iter().position(|token| *token == end).unwrap_or(12);
                assert_eq!(*made, alone.tokens[..place], "{name}, prompt {row}");
            }
        }
    }
    Ok(())
}
