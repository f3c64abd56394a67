//! `logits/accept`: speculative sampling (Leviathan, Kalman and Matias 2023, arXiv 2211.17192, algorithm 1): which of the tokens that a
//! draft proposed stay, and the token after them, so that all are distributed as if the target alone had drawn them.
//!
//! Token x at place i stays with probability min(1, p_i(x) / q_i(x)), if those before it do, where p is the target's distribution and q the
//! draft's. Behind the last that stays a token is drawn from max(0, p - q), and from p where all stay. Of a draft that does not draw, as
//! prompt lookup, q is 1 at its own token. Draws are those of [`logits/draw`](super::draw), of a seed of their own.

use super::noise::{exponential, uniform, words};
use crate::kernels::prelude::*;

/// Columns are compared as f32, which is exact up to here.
const MAX_COLUMNS: usize = 1 << 24;
/// The relative error of a weight over an exponential number, as in `logits/draw`, and of the difference of two weights.
const ERROR: f64 = 5e-6;
/// That of a uniform number times a weight.
const PRODUCT: f64 = 4.0 * U;
/// A word that is no token, in the place of one.
const NO_TOKEN: u32 = u32::MAX;

params! {
    struct Params {
        drafts: u32,
        columns: u32,
        draft_columns: u32,
        /// 1: the draft does not draw, `drafted_by` is not looked at.
        certain: u32,
        /// Of the first drafted token's row in its text.
        place: u32,
        seed_low: u32,
        seed_high: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "logits/accept",
    source: include_str!("../../../shaders/logits/accept.wgsl"),
    bindings: &[
        binding("likely", Access::Read, Element::Is(DType::F32)),
        binding("drafted_by", Access::Read, Element::Is(DType::F32)),
        binding("drafted", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || vec![Variant::BASELINE, Variant { subgroups: true, ..Variant::BASELINE }],
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(60.0 * values, 8.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// What a draft proposed.
#[derive(Clone, Copy, Debug)]
pub struct Drafted<'a> {
    /// Its tokens, u32 of at least `count`.
    pub tokens: &'a Tensor,
    /// How many.
    pub count: usize,
    /// The probabilities that it drew each with, f32 (at least `count`, its columns); `None`: it does not draw.
    pub by: Option<&'a Tensor>,
}

/// For the target's probabilities at each drafted token and behind the last, f32 of (count + 1, columns): how many tokens stay, and the
/// token after those, u32 of (2). `place` is that of the first row in its text.
pub fn accept(
    device: &Device,
    likely: &Tensor,
    drafted: Drafted<'_>,
    place: usize,
    seed: u64,
) -> Result<Tensor> {
    let columns = likely.len() / (drafted.count + 1);
    assert!(columns <= MAX_COLUMNS, "columns are compared as f32");
    let draft_columns = drafted.by.map_or(0, |by| by.len() / by.shape()[0]);
    let result = device.allocate(DType::U32, &[2], "accepted tokens")?;
    let [seed_low, seed_high] = words(seed);
    let params = Params {
        drafts: drafted.count as u32,
        columns: columns as u32,
        draft_columns: draft_columns as u32,
        certain: u32::from(drafted.by.is_none()),
        place: place as u32,
        seed_low,
        seed_high,
    };
    device.call(
        &KERNEL,
        Variant { subgroups: device.capabilities().subgroups, ..Variant::BASELINE },
        &params,
        &[likely, drafted.by.unwrap_or(likely), drafted.tokens, &result],
    )?;
    Ok(result)
}

/// The inputs, as numbers.
struct Inputs<'a> {
    p: Params,
    likely: Vec<f64>,
    drafted_by: Vec<f64>,
    drafted: &'a [u32],
}

impl<'a> Inputs<'a> {
    fn new(args: &Args<'a>) -> Self {
        let [likely, drafted_by] = [0, 1].map(|index| args.tensors[index].to_f64());
        Self { p: args.parameters(), likely, drafted_by, drafted: args.tensors[2].u32s() }
    }

    fn draft_chance(&self, row: usize, token: usize) -> f64 {
        let columns = self.p.draft_columns as usize;
        match self.p.certain {
            1 => f64::from(u8::from(token == self.drafted[row] as usize)),
            _ if token >= columns => 0.0,
            _ => self.drafted_by[row * columns + token],
        }
    }

    /// A uniform number times the draft's chance of its token, and the target's.
    fn stakes(&self, draft: usize) -> (f64, f64) {
        let Params { place, seed_low, seed_high, columns, .. } = self.p;
        let token = self.drafted[draft] as usize;
        let number = uniform([NO_TOKEN, place + draft as u32, seed_low, seed_high]);
        let likely = self.likely[draft * columns as usize + token];
        (number * self.draft_chance(draft, token), likely)
    }

    /// Each token's weight over its number, behind so many that stay.
    fn scores(&self, accepted: usize) -> Vec<f64> {
        let Params { drafts, columns, place, seed_low, seed_high, .. } = self.p;
        let columns = columns as usize;
        let line = &self.likely[accepted * columns..][..columns];
        let more = |(token, weight): (usize, &f64)| match accepted < drafts as usize {
            true => (weight - self.draft_chance(accepted, token)).max(0.0),
            false => *weight,
        };
        let mut weights: Vec<f64> = line.iter().enumerate().map(more).collect();
        if weights.iter().all(|weight| *weight == 0.0) {
            weights = line.to_vec();
        }
        let score = |(token, weight): (usize, &f64)| match *weight {
            weight if weight > 0.0 => {
                weight / exponential([token as u32, place + accepted as u32, seed_low, seed_high])
            }
            _ => 0.0,
        };
        weights.iter().enumerate().map(score).collect()
    }
}

/// Where a token is within roundings of staying, any number from there on may stay, before any token. Of tokens that are nearer than
/// roundings either may be drawn.
fn reference(args: &Args<'_>) -> Vec<Expected> {
    let inputs = Inputs::new(args);
    let drafts = inputs.p.drafts as usize;
    let mut accepted = 0;
    while accepted < drafts {
        let (stake, likely) = inputs.stakes(accepted);
        if (stake - likely).abs() <= PRODUCT * likely {
            let (few, most, token) = (accepted as f64, drafts as f64, f64::from(inputs.p.columns));
            let values = vec![(few + most) / 2.0, token / 2.0];
            return vec![Expected { values, bounds: vec![(most - few) / 2.0, token / 2.0] }];
        }
        if stake >= likely {
            break;
        }
        accepted += 1;
    }
    let scores = inputs.scores(accepted);
    let most = scores.iter().copied().fold(0.0, f64::max) * (1.0 - 2.0 * ERROR);
    let near = |score: &f64| *score >= most;
    let first = scores.iter().position(near).unwrap_or(0) as f64;
    let last = scores.iter().rposition(near).unwrap_or(0) as f64;
    let mut expected = Expected::exact(vec![accepted as f64]);
    expected.push((first + last) / 2.0, (last - first) / 2.0);
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let inputs = Inputs::new(args);
    let stays = |draft: &usize| {
        let (stake, likely) = inputs.stakes(*draft);
        stake < likely
    };
    let accepted = (0..inputs.p.drafts as usize).take_while(stays).count();
    let scores = inputs.scores(accepted);
    let better = |best: usize, next: usize| if scores[next] > scores[best] { next } else { best };
    let token = (0..scores.len()).fold(0, better);
    outputs.words(0)[..2].copy_from_slice(&[accepted as u32, token as u32]);
}

/// `steepness`: of the probabilities. `apart`: how far the draft's are from the target's, 0: they are the same.
fn case(
    drafts: usize,
    (columns, draft_columns): (usize, usize),
    (steepness, apart): (i32, f32),
    seed: u64,
    note: &'static str,
) -> Case {
    let label = format!(
        "drafts={drafts},columns={columns},draft={draft_columns},steepness={steepness},apart={apart},seed={seed:x}{note}"
    );
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(85);
        let raw: Vec<f32> =
            (0..(drafts + 1) * columns).map(|_| random.value().abs().powi(steepness)).collect();
        let moved: Vec<f32> = raw.iter().map(|w| w + apart * random.value().abs()).collect();
        let normed = |raw: &[f32], rows: usize, width: usize| -> Vec<f32> {
            let line = |row: usize| {
                let line = &raw[row * columns..][..width];
                let sum: f32 = line.iter().sum();
                line.iter().map(|w| w / sum).collect::<Vec<f32>>()
            };
            (0..rows).flat_map(line).collect()
        };
        let mut likely = normed(&raw, drafts + 1, columns);
        let drafted_by = normed(&moved, drafts, draft_columns);
        let largest = |line: &[f32]| {
            let better =
                |best: usize, next: usize| if line[next] > line[best] { next } else { best };
            (0..line.len()).fold(0, better)
        };
        let lines = drafted_by.chunks_exact(draft_columns);
        let drafted: Vec<u32> = lines.map(|line| largest(line) as u32).collect();
        if note == ",refused" {
            // The target never has the third token.
            likely[2 * columns + drafted[2] as usize] = 0.0;
        }
        let [seed_low, seed_high] = words(seed);
        let certain = u32::from(note == ",certain");
        let params = Params {
            drafts: drafts as u32,
            columns: columns as u32,
            draft_columns: draft_columns as u32,
            certain,
            place: 300,
            seed_low,
            seed_high,
        };
        // A binding has an element at least.
        let held = drafts.max(1);
        let mut drafted_by = drafted_by;
        drafted_by.resize(held * draft_columns, 0.0);
        let mut drafted = drafted;
        drafted.resize(held, 0);
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[drafts + 1, columns], &likely),
            HostTensor::from_f32(DType::F32, &[held, draft_columns], &drafted_by),
            HostTensor::from_u32(&[held], &drafted),
            HostTensor::zeros(DType::U32, &[2]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let columns = sizes.between(0, 3, 700);
    let seed = 0x0123_4567_89ab_cdef_u64.wrapping_mul(sizes.between(1, 0, 255) as u64);
    let apart = [0.0, 0.1, 1.0][sizes.between(2, 0, 2)];
    let note = ["", ",certain"][sizes.between(3, 0, 1)];
    let width = columns - sizes.between(4, 0, 2);
    case(
        sizes.between(5, 0, 9),
        (columns, width),
        (3 * sizes.between(6, 0, 9) as i32, apart),
        seed,
        note,
    )
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(0, (101, 101), (4, 0.0), 1, ""),
        case(1, (1, 1), (1, 0.0), 2, ""),
        case(4, (300, 300), (9, 0.0), 3, ""),
        case(4, (300, 300), (9, 0.0), 3, ",certain"),
        case(4, (300, 280), (9, 0.3), 4, ""),
        case(5, (300, 300), (20, 0.05), 0xfeed_0000_0007, ",refused"),
        case(0, (97, 97), (4, 0.0), 6, ",certain"),
        case(8, (32_000, 32_000), (60, 0.001), 7, ""),
    ];
    // Seeds by which some, all and none stay.
    cases.extend((10..22).map(|seed| case(3, (64, 60), (6, 0.2), seed, "")));
    // A draft that lacks most tokens.
    cases.extend((30..36).map(|seed| case(3, (64, 20), (1, 0.1), seed, "")));
    cases.extend((22..28).map(|seed| case(3, (64, 64), (200, 0.0), seed, ",certain")));
    cases.push(case(8, (128_256, 128_256), (60, 0.001), 7, "").bench());
    cases
}
