//! `logits/draw`: for each row of weights a token, each as likely as its weight is large: argmax over tokens of weight / E, where E is an
//! exponential number of the token's own (the exponential race; with weights exp(logit) it is the Gumbel-max trick, Maddison, Tarlow
//! and Minka 2014, "A* Sampling", section 2).
//!
//! E is a hash of the row's seed, its place and the token, nothing that is kept: the same call gives the same tokens on every
//! device, but where two tokens are nearer than roundings, and a token's chance does not depend on the order of others. A row that does
//! not draw takes the token of the largest weight, the first of equal ones.

use super::noise::{exponential, words};
use crate::kernels::prelude::*;

/// Columns are compared as f32, which is exact up to here.
const MAX_COLUMNS: usize = 1 << 24;
/// The relative error of a weight over an exponential number: a logarithm that is off by 2^-21 of at least log 2, a series and two
/// divisions of a few ulps each.
const ERROR: f64 = 4e-6;

params! {
    struct Params {
        rows: u32,
        columns: u32,
    }
}

/// Words of a row's chances.
const WORDS: usize = 3;

/// What each row draws by, u32 of (rows, 3): a seed's low and high word, and whether the row draws at all.
#[derive(Clone, Debug)]
pub struct Chances(Tensor);

impl Chances {
    /// Of these seeds, a row each; `None`: the row takes the token of the largest weight.
    pub fn upload(device: &Device, seeds: &[Option<u64>]) -> Result<Self> {
        let rows = HostTensor::from_u32(&[seeds.len(), WORDS], &chance_words(seeds));
        device.upload(&rows, "what tokens are drawn by").map(Self)
    }

    /// Of so many rows, row r with `seed` + r 2^32.
    pub fn consecutive(device: &Device, seed: u64, rows: usize) -> Result<Self> {
        Self::upload(device, &consecutive(seed, rows).map(Some).collect::<Vec<_>>())
    }
}

/// Seeds of so many rows, the first of which has `seed`.
pub fn consecutive(seed: u64, rows: usize) -> impl Iterator<Item = u64> {
    (0..rows as u64).map(move |row| seed.wrapping_add(row << 32))
}

fn chance_words(seeds: &[Option<u64>]) -> Vec<u32> {
    let row = |seed: &Option<u64>| match seed {
        Some(seed) => [words(*seed)[0], words(*seed)[1], 1],
        None => [0; WORDS],
    };
    seeds.iter().flat_map(row).collect()
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "logits/draw",
    source: include_str!("../../../shaders/logits/draw.wgsl"),
    bindings: &[
        binding("weights", Access::Read, Element::Is(DType::F32)),
        binding("places", Access::Read, Element::Is(DType::U32)),
        binding("chances", Access::Read, Element::Is(DType::U32)),
        binding("drawn", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || vec![Variant::BASELINE, Variant { subgroups: true, ..Variant::BASELINE }],
    groups: |args| fold(args.tensors[3].len()),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(60.0 * values, 4.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// For `weights`, f32 of (rows, columns), none below zero, a place of each row in its text, u32 of (rows), and what each draws by: a
/// token of each row, u32 of (rows); 0 where all weights are zero. A row draws what it would draw alone, and places are independent.
pub fn draw(
    device: &Device,
    weights: &Tensor,
    places: &Tensor,
    Chances(chances): &Chances,
) -> Result<Tensor> {
    let rows = places.len();
    let columns = weights.len() / rows;
    assert!(columns <= MAX_COLUMNS, "columns are compared as f32");
    let drawn = device.allocate(DType::U32, &[rows], "drawn tokens")?;
    let params = Params { rows: rows as u32, columns: columns as u32 };
    device.call(
        &KERNEL,
        Variant { subgroups: device.capabilities().subgroups, ..Variant::BASELINE },
        &params,
        &[weights, places, chances, &drawn],
    )?;
    Ok(drawn)
}

/// Each token's weight over its number, of a row.
fn scores(chance: &[u32], place: u32, weights: &[f64]) -> Vec<f64> {
    let score = |(token, weight): (usize, &f64)| match *weight {
        weight if weight > 0.0 && chance[2] == 0 => weight,
        weight if weight > 0.0 => weight / exponential([token as u32, place, chance[0], chance[1]]),
        _ => 0.0,
    };
    weights.iter().enumerate().map(score).collect()
}

/// The first of the largest.
fn largest(scores: &[f64]) -> usize {
    let better = |best: usize, next: usize| if scores[next] > scores[best] { next } else { best };
    (0..scores.len()).fold(0, better)
}

/// The scores of every row.
fn all_scores(args: &Args<'_>) -> Vec<Vec<f64>> {
    let p: Params = args.parameters();
    let (weights, places) = (args.tensors[0].to_f64(), args.tensors[1].u32s());
    let chances = args.tensors[2].u32s().par_chunks_exact(WORDS);
    let lines = weights.par_chunks_exact(p.columns as usize).zip(chances).enumerate();
    lines.map(|(row, (line, chance))| scores(chance, places[row], line)).collect()
}

/// Of tokens that are nearer than roundings either may be drawn, or one between them.
fn reference(args: &Args<'_>) -> Vec<Expected> {
    let mut drawn = Expected::default();
    let chances = args.tensors[2].u32s().chunks_exact(WORDS);
    for (scores, chance) in all_scores(args).into_iter().zip(chances) {
        if chance[2] == 0 {
            drawn.push(largest(&scores) as f64, 0.0);
            continue;
        }
        let most = scores[largest(&scores)] * (1.0 - 2.0 * ERROR);
        let near = |score: &f64| *score >= most;
        let first = scores.iter().position(near).unwrap_or(0) as f64;
        let last = match most {
            0.0 => first,
            _ => scores.iter().rposition(near).unwrap_or(0) as f64,
        };
        drawn.push((first + last) / 2.0, (last - first) / 2.0);
    }
    vec![drawn]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let scores = all_scores(args);
    for (word, scores) in outputs.words(0).iter_mut().zip(scores) {
        *word = largest(&scores) as u32;
    }
}

fn case((rows, columns): (usize, usize), seed: u64, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},seed={seed:x}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(81);
        let mut weights: Vec<f32> = (0..rows * columns).map(|_| random.value().abs()).collect();
        match note {
            // Few have any.
            ",few" => weights.iter_mut().for_each(|w| *w = (*w - 0.97).max(0.0)),
            // Far apart, as probabilities are.
            ",steep" => weights.iter_mut().for_each(|w| *w = w.powi(40)),
            // One alone, in every place once.
            ",single" => weights
                .iter_mut()
                .enumerate()
                .for_each(|(i, w)| *w = f32::from(u8::from(i / columns == i % columns))),
            // None in the first row.
            ",none" => weights[..columns].fill(0.0),
            // Equal ones are the largest.
            ",greedy" => weights.iter_mut().for_each(|w| *w = (8.0 * *w).round()),
            _ => {}
        }
        let places: Vec<u32> = (0..rows).map(|_| random.below(100_000)).collect();
        let mut seeds: Vec<Option<u64>> = consecutive(seed, rows).map(Some).collect();
        if note == ",greedy" {
            seeds.iter_mut().step_by(2).for_each(|seed| *seed = None);
        }
        let params = Params { rows: rows as u32, columns: columns as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &weights),
            HostTensor::from_u32(&[rows], &places),
            HostTensor::from_u32(&[rows, WORDS], &chance_words(&seeds)),
            HostTensor::zeros(DType::U32, &[rows]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let seed = 0x0123_4567_89ab_cdef_u64.wrapping_mul(sizes.between(2, 0, 255) as u64);
    let note = ["", ",few", ",steep", ",greedy"][sizes.between(3, 0, 3)];
    case((sizes.between(0, 1, 40), sizes.between(1, 1, 1500)), seed, note)
}

fn cases() -> Vec<Case> {
    vec![
        case((3, 101), 0, ""),
        case((1, 1), 5, ""),
        case((200, 300), 0xfeed_0000_0001, ""),
        case((60, 1000), u64::MAX, ",steep"),
        case((60, 700), 7 << 32, ",few"),
        case((260, 260), 3, ",single"),
        case((2, 97), 3, ",none"),
        case((5, 700), 3, ",greedy"),
        case((2, 49_152), 11, ",steep"),
        // More rows than one dimension of a dispatch has workgroups.
        case((1051, 3), 9, "").only(|variant| !variant.subgroups),
        case((32, 128_256), 9, "").bench(),
    ]
}
