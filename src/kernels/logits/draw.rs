//! `logits/draw`: for each row of weights a token, each as likely as its weight is large: argmax over tokens of weight / E, where E is an
//! exponential number of the token's own (the exponential race; with weights exp(logit) it is the Gumbel-max trick, Maddison, Tarlow
//! and Minka 2014, "A* Sampling", section 2).
//!
//! E is a hash of the seed, the row, the row's place and the token, nothing that is kept: the same call gives the same tokens on every
//! device, but where two tokens are nearer than roundings, and a token's chance does not depend on the order of others.

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
        seed_low: u32,
        /// A row draws by this and its number.
        seed_high: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "logits/draw",
    source: include_str!("../../../shaders/logits/draw.wgsl"),
    bindings: &[
        binding("weights", Access::Read, Element::Is(DType::F32)),
        binding("places", Access::Read, Element::Is(DType::U32)),
        binding("drawn", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || vec![Variant::BASELINE, Variant { subgroups: true, ..Variant::BASELINE }],
    groups: |args| fold(args.tensors[2].len()),
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

/// For `weights`, f32 of (rows, columns), none below zero, and a place of each row in its text, u32 of (rows): a token of each row, u32
/// of (rows); 0 where all weights are zero.
///
/// Row r draws with `seed` as a single row does with `seed` + r 2^32: rows are independent of each other, and so are places.
pub fn draw(device: &Device, weights: &Tensor, places: &Tensor, seed: u64) -> Result<Tensor> {
    let rows = places.len();
    let columns = weights.len() / rows;
    assert!(columns <= MAX_COLUMNS, "columns are compared as f32");
    let drawn = device.allocate(DType::U32, &[rows], "drawn tokens")?;
    let params = Params::new(rows, columns, seed);
    device.call(
        &KERNEL,
        Variant { subgroups: device.capabilities().subgroups, ..Variant::BASELINE },
        &params,
        &[weights, places, &drawn],
    )?;
    Ok(drawn)
}

impl Params {
    fn new(rows: usize, columns: usize, seed: u64) -> Self {
        let [seed_low, seed_high] = words(seed);
        Self { rows: rows as u32, columns: columns as u32, seed_low, seed_high }
    }

    /// Each token's weight over its number, of a row.
    fn scores(&self, row: usize, place: u32, weights: &[f64]) -> Vec<f64> {
        let high = self.seed_high.wrapping_add(row as u32);
        let score = |(token, weight): (usize, &f64)| match *weight {
            weight if weight > 0.0 => {
                weight / exponential([token as u32, place, self.seed_low, high])
            }
            _ => 0.0,
        };
        weights.iter().enumerate().map(score).collect()
    }
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
    let lines = weights.par_chunks_exact(p.columns as usize).enumerate();
    lines.map(|(row, line)| p.scores(row, places[row], line)).collect()
}

/// Of tokens that are nearer than roundings either may be drawn, or one between them.
fn reference(args: &Args<'_>) -> Vec<Expected> {
    let mut drawn = Expected::default();
    for scores in all_scores(args) {
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
            _ => {}
        }
        let places: Vec<u32> = (0..rows).map(|_| random.below(100_000)).collect();
        Params::new(rows, columns, seed).case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &weights),
            HostTensor::from_u32(&[rows], &places),
            HostTensor::zeros(DType::U32, &[rows]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let seed = 0x0123_4567_89ab_cdef_u64.wrapping_mul(sizes.between(2, 0, 255) as u64);
    let note = ["", ",few", ",steep"][sizes.between(3, 0, 2)];
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
        case((2, 49_152), 11, ",steep"),
        // More rows than one dimension of a dispatch holds; a software adapter takes long for so many workgroups.
        case((66_001, 3), 9, "").only(|variant| !variant.subgroups),
        case((32, 128_256), 9, "").bench(),
    ]
}
