//! `experts/down`: the down projections of each token's own experts, for few tokens, by one call: results times their shares, added to
//! the residual stream. The weights of all experts stand one behind the other; those of others are not read.
//!
//! result[t, r] += sum over k of share[t, e] sum_c x[t, k, c] weight[e, r, c], e = chosen[t, k]

use super::random_shares;
use crate::kernels::matmul::{Input, typed_variants};
use crate::kernels::matrix::{Layout, Matrix};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::WHOLE_ROW;

params! {
    struct Params {
        /// Rows of this call, from `row_start`.
        rows: u32,
        row_start: u32,
        /// Rows of one expert's weight.
        width: u32,
        columns: u32,
        tokens: u32,
        used: u32,
        experts: u32,
        layout: Layout,
    }
}

/// Rows of a workgroup, and its invocations.
const CONSTANTS: &[(&str, u32)] = &[("ROWS", 2), ("WORKGROUP", 64)];
const ROWS: usize = 2;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "experts/down",
    source: include_str!("../../../shaders/experts/down.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("chosen", Access::Read, Element::Is(DType::U32)),
        binding("shares", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let each = |base: Variant| {
            let plain = Variant { constants: CONSTANTS, ..base };
            [plain.clone(), plain.with_subgroups(true)]
        };
        // The stream is f32.
        let onto = typed_variants().into_iter().filter(|v| v.output == DType::F32);
        onto.flat_map(each).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.rows as usize).div_ceil(ROWS) * p.tokens as usize)
    },
    cost: |args| {
        let p: Params = args.parameters();
        let rows = f64::from(p.rows) * f64::from(p.tokens) * f64::from(p.used);
        let weight = 4.0 * rows * f64::from(p.layout.code_words + p.layout.scale_words);
        let results = 8.0 * f64::from(p.rows) * f64::from(p.tokens);
        Cost::new(2.0 * rows * f64::from(p.columns), weight + results)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Adds to the stream `result`, f32 (tokens, width), what the down projections of each token's experts make of `x`, (tokens * used,
/// columns), times their shares, f32 (tokens, experts). `chosen`: u32 (tokens, used). `weights`: every expert's rows,
/// (experts * width, columns), in one chunk.
pub fn down(
    device: &Device,
    x: &Input,
    weights: &Matrix,
    (chosen, shares): (&Tensor, &Tensor),
    result: &Tensor,
) -> Result<()> {
    let [chunk] = weights.chunks() else { panic!("weights that stand in one chunk") };
    let (tokens, columns) = (shares.shape()[0], weights.columns());
    let (used, experts) = (chosen.len() / tokens, shares.len() / tokens);
    let width = weights.rows() / experts;
    let variant = Variant {
        weight: Some(weights.format().ty),
        subgroups: device.capabilities().subgroups,
        constants: CONSTANTS,
        ..Variant::typed(x.dtype(), DType::F32)
    };
    let plain = x.plain(device)?;
    // A call stays within the device's limit.
    let operations = 2.0 * (columns * tokens * used) as f64;
    let step = ((device.call_limit().operations / operations) as usize).max(ROWS);
    for row in (0..width).step_by(step) {
        let params = Params {
            rows: step.min(width - row) as u32,
            row_start: row as u32,
            width: width as u32,
            columns: columns as u32,
            tokens: tokens as u32,
            used: used as u32,
            experts: experts as u32,
            layout: weights.layout(),
        };
        let operands = [&plain, &chunk.codes, &chunk.scales, chosen, shares, result];
        device.call(&KERNEL, variant.clone(), &params, &operands)?;
    }
    Ok(())
}

fn weight_row(args: &Args<'_>, expert: usize, row: usize) -> Vec<f32> {
    let p: Params = args.parameters();
    let mut line = vec![0.0; p.columns as usize];
    let row = expert * p.width as usize + p.row_start as usize + row;
    weights::decode_row(args, (1, 2), row, p.layout, &mut line);
    line
}

/// Of a token each expert that it goes to, its share, and what it is to make a product of.
fn experts_of(args: &Args<'_>, token: usize) -> Vec<(usize, f64, Vec<f32>)> {
    let p: Params = args.parameters();
    let (columns, stride) = (p.columns as usize, (p.columns as usize).next_multiple_of(4));
    let used = p.used as usize;
    let place = |place: usize| {
        let expert = args.tensors[3].u32s()[place];
        (expert < p.experts).then(|| {
            let share = args.tensors[4].get(token * p.experts as usize + expert as usize);
            (expert as usize, share, args.tensors[0].load(place * stride, columns))
        })
    };
    // The list ends where a place has none.
    (token * used..(token + 1) * used).map_while(place).collect()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let before = args.tensors[5].to_f64();
    let mut expected = Expected::exact(before.clone());
    let relative = gamma((p.columns * p.used) as usize + 3);
    for token in 0..p.tokens as usize {
        let own = experts_of(args, token);
        for row in 0..p.rows as usize {
            let at = token * p.width as usize + p.row_start as usize + row;
            let (mut value, mut magnitude) = (before[at], before[at].abs());
            for (expert, share, x) in &own {
                for (w, x) in weight_row(args, *expert, row).iter().zip(x) {
                    let one = share * f64::from(*w) * f64::from(*x);
                    value += one;
                    magnitude += one.abs();
                }
            }
            let stored = storing(args.variant.output, value);
            (expected.values[at], expected.bounds[at]) = (value, relative * magnitude + stored);
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let rows = p.rows as usize;
    for token in 0..p.tokens as usize {
        let own = experts_of(args, token);
        let value = |row: usize| -> f32 {
            let one = |(expert, share, x): &(usize, f64, Vec<f32>)| {
                *share as f32 * super::dot(&weight_row(args, *expert, row), x)
            };
            own.iter().map(one).sum()
        };
        let sums: Vec<f32> = (0..rows).into_par_iter().map(value).collect();
        let start = token * p.width as usize + p.row_start as usize;
        let mut line = outputs.load(0, start, rows);
        line.iter_mut().zip(sums).for_each(|(value, sum)| *value += sum);
        outputs.store(0, start, &line);
    }
}

fn case(width: usize, columns: usize, tokens: usize, group: u32) -> Case {
    let label = format!("width={width},columns={columns},tokens={tokens},group={group}");
    Case::new(label, move |variant: &Variant| {
        let (experts, used) = (5, 3);
        let mut random = Random::new(71);
        let packed = weights::random(&mut random, variant, experts * width, columns, group);
        let stride = columns.next_multiple_of(4);
        let mut x = random.values(tokens * used * stride, 1.0);
        // Rows are padded with zeros.
        x.chunks_exact_mut(stride).for_each(|line| line[columns..].fill(0.0));
        let shares = random_shares(&mut random, tokens, experts);
        // One more than there are: none, nor any behind it.
        let chosen = (0..tokens * used).map(|_| random.below(experts as u32 + 1));
        let chosen: Vec<u32> = chosen.collect();
        let params = Params {
            rows: width as u32,
            row_start: 0,
            width: width as u32,
            columns: columns as u32,
            tokens: tokens as u32,
            used: used as u32,
            experts: experts as u32,
            layout: Layout::new(packed.format, columns),
        };
        let [codes, scales] = weights::host(&packed);
        let before = random.values(tokens * width, 2.0);
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[tokens * used, stride], &x),
            codes,
            scales,
            HostTensor::from_u32(&[tokens, used], &chosen),
            HostTensor::from_f32(DType::F32, &[tokens, experts], &shares),
            HostTensor::from_f32(variant.output, &[tokens, width], &before),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 30),
        4 * sizes.between(1, 1, 100) - sizes.between(2, 0, 3),
        sizes.between(3, 1, 5),
        sizes.group(4),
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(5, 97, 4, WHOLE_ROW),
        case(3, 576, 3, 32),
        case(4, 64, 3, 16),
        // One column in the second vector of an invocation.
        case(3, 21, 5, WHOLE_ROW),
    ]
}
