//! `experts/product`: the product of few tokens with an expert's weight, for those of them that go to the expert. Which these are
//! only the device knows: workgroups of others end at once, and the weight of an expert without tokens is not read. So a step of
//! generation reads the weights of a token's own experts, and nothing is read back.
//!
//! result[t, r] = sum_c x[t, c] weight[r, c], or share[t] times it added, or the activation of what stood there times it

use super::{Share, random_shares};
use crate::kernels::activation::Activation;
use crate::kernels::matmul::{FUSED_GATES, Input, typed_variants};
use crate::kernels::matrix::{Layout, Matrix};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::WHOLE_ROW;

params! {
    struct Params {
        rows: u32,
        row_start: u32,
        columns: u32,
        tokens: u32,
        experts: u32,
        expert: u32,
        out_stride: u32,
        out_offset: u32,
        epilogue: u32,
        layout: Layout,
    }
}

/// Times the share, it is added to what stands in the result.
const EPILOGUE_ADD: u32 = 1;
/// The result holds a gate, whose activation's number stands in the bits from [`EPILOGUE_ACTIVATION`] on.
const EPILOGUE_GATE: u32 = 2;
const EPILOGUE_ACTIVATION: u32 = 2;

/// Rows of a workgroup, and its invocations.
const CONSTANTS: &[(&str, u32)] = &[("ROWS", 2), ("WORKGROUP", 64)];
const ROWS: usize = 2;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "experts/product",
    source: include_str!("../../../shaders/experts/product.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("shares", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let each = |base: Variant| {
            let plain = Variant { constants: CONSTANTS, ..base };
            [plain.clone(), plain.with_subgroups(true)]
        };
        typed_variants().into_iter().flat_map(each).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.rows as usize).div_ceil(ROWS) * p.tokens as usize)
    },
    cost: |args| {
        let p: Params = args.parameters();
        let (rows, columns, tokens) =
            (f64::from(p.rows), f64::from(p.columns), f64::from(p.tokens));
        let weight = 4.0 * rows * f64::from(p.layout.code_words + p.layout.scale_words);
        let results = args.tensors[4].dtype.size() as f64 * tokens * rows;
        Cost::new(2.0 * rows * columns * tokens, weight + results)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// What becomes of an expert's product.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// It is stored.
    Stored,
    /// Times the share, it is added to what stands there.
    Added,
    /// What stands there is a gate: the product times its activation takes its place. One of [`FUSED_GATES`].
    Gated(Activation),
}

impl Outcome {
    fn epilogue(self) -> u32 {
        match self {
            Outcome::Stored => 0,
            Outcome::Added => EPILOGUE_ADD,
            Outcome::Gated(activation) => {
                assert!(FUSED_GATES.contains(&activation), "a gate that products fuse");
                EPILOGUE_GATE | activation.code() << EPILOGUE_ACTIVATION
            }
        }
    }
}

/// The product of tokens with an expert's weight of (rows, columns) in `result`, (tokens, rows), where a token's share is not 0;
/// elsewhere the result stays as it is.
pub fn product(
    device: &Device,
    x: &Input,
    weight: &Matrix,
    share: Share<'_>,
    outcome: Outcome,
    result: &Tensor,
) -> Result<()> {
    let (tokens, columns) = (x.tokens(), weight.columns());
    let plain = x.plain(device)?;
    let variant = Variant {
        weight: Some(weight.format().ty),
        subgroups: device.capabilities().subgroups,
        constants: CONSTANTS,
        ..Variant::typed(x.dtype(), result.dtype())
    };
    // A call stays within the device's limit.
    let operations = 2.0 * (columns * tokens) as f64;
    let step = ((device.call_limit().operations / operations) as usize).max(ROWS);
    for chunk in weight.chunks() {
        for row in (0..chunk.rows).step_by(step) {
            let params = Params {
                rows: step.min(chunk.rows - row) as u32,
                row_start: row as u32,
                columns: columns as u32,
                tokens: tokens as u32,
                experts: share.experts() as u32,
                expert: share.expert as u32,
                out_stride: weight.rows() as u32,
                out_offset: (chunk.start + row) as u32,
                epilogue: outcome.epilogue(),
                layout: weight.layout(),
            };
            let operands = [&plain, &chunk.codes, &chunk.scales, share.shares, result];
            device.call(&KERNEL, variant.clone(), &params, &operands)?;
        }
    }
    Ok(())
}

/// Of each token that goes to the expert: its number, its share, and its activations.
fn chosen(args: &Args<'_>) -> Vec<(usize, f64, Vec<f32>)> {
    let p: Params = args.parameters();
    let (columns, stride) = (p.columns as usize, (p.columns as usize).next_multiple_of(4));
    let token = |token: usize| {
        let share = args.tensors[3].get(token * p.experts as usize + p.expert as usize);
        (share != 0.0).then(|| (token, share, args.tensors[0].load(token * stride, columns)))
    };
    (0..p.tokens as usize).filter_map(token).collect()
}

fn weight_row(args: &Args<'_>, row: usize) -> Vec<f32> {
    let p: Params = args.parameters();
    let mut line = vec![0.0; p.columns as usize];
    weights::decode_row(args, (1, 2), p.row_start as usize + row, p.layout, &mut line);
    line
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut expected = Expected::exact(args.tensors[4].to_f64());
    let relative = gamma(p.columns as usize + 1);
    let tokens = chosen(args);
    for row in 0..p.rows as usize {
        let weight = weight_row(args, row);
        for (token, share, x) in &tokens {
            let at = token * p.out_stride as usize + p.out_offset as usize + row;
            let before = expected.values[at];
            let products = weight.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let (sum, magnitude) = products
                .fold((0.0, 0.0), |(sum, all): (f64, f64), one| (sum + one, all + one.abs()));
            let (value, bound) = match p.epilogue {
                0 => (sum, relative * magnitude),
                EPILOGUE_ADD => {
                    let value = before + share * sum;
                    let rounded = 2.0 * U * ((share * sum).abs() + value.abs());
                    (value, relative * share.abs() * magnitude + rounded)
                }
                gate => {
                    let gate = Activation::of(gate >> EPILOGUE_ACTIVATION);
                    let (gate, loss) = gate.reference(before);
                    let lost = relative * magnitude * gate.abs() + loss * sum.abs();
                    (sum * gate, lost + 2.0 * U * (sum * gate).abs())
                }
            };
            let stored = storing(args.variant.output, value);
            (expected.values[at], expected.bounds[at]) = (value, bound + stored);
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let tokens = chosen(args);
    if tokens.is_empty() {
        return;
    }
    let of_row = |row: usize| -> Vec<f32> {
        let weight = weight_row(args, row);
        tokens.iter().map(|(.., x)| super::dot(&weight, x)).collect()
    };
    let rows = p.rows as usize;
    let sums: Vec<Vec<f32>> = (0..rows).into_par_iter().map(of_row).collect();
    for (place, (token, share, _)) in tokens.iter().enumerate() {
        let start = token * p.out_stride as usize + p.out_offset as usize;
        let mut line = outputs.load(0, start, rows);
        for (value, sums) in line.iter_mut().zip(&sums) {
            let sum = sums[place];
            *value = match p.epilogue {
                0 => sum,
                EPILOGUE_ADD => *value + *share as f32 * sum,
                gate => sum * Activation::of(gate >> EPILOGUE_ACTIVATION).value(*value),
            };
        }
        outputs.store(0, start, &line);
    }
}

fn case(rows: usize, columns: usize, tokens: usize, (group, outcome): (u32, Outcome)) -> Case {
    let label =
        format!("rows={rows},columns={columns},tokens={tokens},group={group},outcome={outcome:?}");
    Case::new(label, move |variant: &Variant| {
        let experts = 3;
        let mut random = Random::new(65);
        let packed = weights::random(&mut random, variant, rows, columns, group);
        let stride = columns.next_multiple_of(4);
        let mut x = random.values(tokens * stride, 1.0);
        // Rows are padded with zeros.
        x.chunks_exact_mut(stride).for_each(|line| line[columns..].fill(0.0));
        let shares = random_shares(&mut random, tokens, experts);
        let params = Params {
            rows: rows as u32,
            row_start: 0,
            columns: columns as u32,
            tokens: tokens as u32,
            experts: experts as u32,
            expert: 2,
            out_stride: rows as u32,
            out_offset: 0,
            epilogue: outcome.epilogue(),
            layout: Layout::new(packed.format, columns),
        };
        let [codes, scales] = weights::host(&packed);
        let before = random.values(tokens * rows, 2.0);
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[tokens, stride], &x),
            codes,
            scales,
            HostTensor::from_f32(DType::F32, &[tokens, experts], &shares),
            HostTensor::from_f32(variant.output, &[tokens, rows], &before),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let outcomes = [Outcome::Stored, Outcome::Added, Outcome::Gated(Activation::Silu)];
    case(
        sizes.between(0, 1, 60),
        4 * sizes.between(1, 1, 200) - sizes.between(2, 0, 3),
        sizes.between(3, 1, 9),
        (sizes.group(4), outcomes[sizes.between(5, 0, 2)]),
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(5, 97, 4, (WHOLE_ROW, Outcome::Stored)),
        case(3, 576, 3, (32, Outcome::Added)),
        case(7, 128, 8, (32, Outcome::Gated(Activation::Silu))),
        case(4, 64, 3, (16, Outcome::Gated(Activation::GeluTanh))),
        // One column in the second vector of an invocation.
        case(3, 21, 5, (WHOLE_ROW, Outcome::Added)),
        // No token goes there.
        case(2, 64, 3, (32, Outcome::Added)).poisoned(3, Poison::Zeros),
        case(2, 64, 1, (32, Outcome::Stored)).poisoned(3, Poison::NaN),
        case(14_336, 4096, 1, (32, Outcome::Stored)).bench().only(timed),
    ]
}

/// Weight types worth timing.
fn timed(variant: &Variant) -> bool {
    let weight = variant.weight.map_or("", |weight| weight.name);
    variant.activation == DType::F32 && variant.subgroups && ["f16", "uint4m"].contains(&weight)
}
