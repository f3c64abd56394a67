//! `experts/gated`: the gated half of the feed-forwards of each token's own experts, for few tokens, by one call. The weights of all
//! experts stand one behind the other, of each the gate before the up projection; those of others are not read.
//!
//! result[t, k, r] = activation(sum_c x[t, c] gate[e, r, c]) * sum_c x[t, c] up[e, r, c], e = chosen[t, k]; 0 where there is none

use crate::kernels::activation::Activation;
use crate::kernels::matmul::{FUSED_GATES, Input, typed_variants};
use crate::kernels::matrix::{Layout, Matrix};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::WHOLE_ROW;

params! {
    struct Params {
        /// Rows of this call, from `row_start`.
        rows: u32,
        row_start: u32,
        /// Rows of one projection.
        width: u32,
        columns: u32,
        tokens: u32,
        used: u32,
        experts: u32,
        activation: u32,
        layout: Layout,
    }
}

/// Rows of a workgroup, of both projections each, and its invocations.
const CONSTANTS: &[(&str, u32)] = &[("ROWS", 2), ("WORKGROUP", 64)];
const ROWS: usize = 2;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "experts/gated",
    source: include_str!("../../../shaders/experts/gated.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("chosen", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let each = |base: Variant| {
            let plain = Variant { constants: CONSTANTS, ..base };
            [plain.clone(), plain.with_subgroups(true)]
        };
        // What comes of it goes on as an activation.
        let alike = typed_variants().into_iter().filter(|v| v.activation == v.output);
        alike.flat_map(each).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.rows as usize).div_ceil(ROWS) * (p.tokens * p.used) as usize)
    },
    cost: |args| {
        let p: Params = args.parameters();
        let rows = 2.0 * f64::from(p.rows) * f64::from(p.tokens) * f64::from(p.used);
        let weight = 4.0 * rows * f64::from(p.layout.code_words + p.layout.scale_words);
        let results = args.tensors[4].dtype.size() as f64 * rows / 2.0;
        Cost::new(2.0 * rows * f64::from(p.columns), weight + results)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// What the experts in `chosen`, u32 (tokens, used), make of the tokens up to their down projections, (tokens * used, width), in the
/// type of the activations. `weights`: of each expert the gate's and the up projection's rows, (experts * 2 * width, columns), in one
/// chunk. The activation is one of [`FUSED_GATES`].
pub fn gated(
    device: &Device,
    x: &Input,
    weights: &Matrix,
    chosen: &Tensor,
    (experts, activation): (usize, Activation),
) -> Result<Tensor> {
    assert!(FUSED_GATES.contains(&activation), "a gate that products fuse");
    let [chunk] = weights.chunks() else { panic!("weights that stand in one chunk") };
    let (tokens, columns) = (x.tokens(), weights.columns());
    let (used, width) = (chosen.len() / tokens, weights.rows() / (2 * experts));
    let dtype = x.dtype();
    let result = device.allocate(dtype, &[tokens * used, width], "gates of experts")?;
    let variant = Variant {
        weight: Some(weights.format().ty),
        subgroups: device.capabilities().subgroups,
        constants: CONSTANTS,
        ..Variant::typed(dtype, dtype)
    };
    let plain = x.plain(device)?;
    // A call stays within the device's limit.
    let operations = 4.0 * (columns * tokens * used) as f64;
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
            activation: activation.code(),
            layout: weights.layout(),
        };
        let operands = [&plain, &chunk.codes, &chunk.scales, chosen, &result];
        device.call(&KERNEL, variant.clone(), &params, &operands)?;
    }
    Ok(result)
}

/// A row of one projection of an expert: 0 the gate, 1 the up projection.
fn weight_row(args: &Args<'_>, expert: usize, half: usize, row: usize) -> Vec<f32> {
    let p: Params = args.parameters();
    let mut line = vec![0.0; p.columns as usize];
    let row = (2 * expert + half) * p.width as usize + p.row_start as usize + row;
    weights::decode_row(args, (1, 2), row, p.layout, &mut line);
    line
}

/// Of each place in the list the activations of its token, and its expert if it has one.
fn places(args: &Args<'_>) -> Vec<(Vec<f32>, Option<usize>)> {
    let p: Params = args.parameters();
    let (columns, stride) = (p.columns as usize, (p.columns as usize).next_multiple_of(4));
    let place = |(place, expert): (usize, &u32)| {
        let x = args.tensors[0].load(place / p.used as usize * stride, columns);
        (x, (*expert < p.experts).then_some(*expert as usize))
    };
    args.tensors[3].u32s().iter().enumerate().map(place).collect()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, relative) = (p.rows as usize, gamma(p.columns as usize + 1));
    let mut expected = Expected::default();
    for (x, expert) in places(args) {
        let Some(expert) = expert else {
            (0..rows).for_each(|_| expected.push(0.0, 0.0));
            continue;
        };
        for row in 0..rows {
            let product = |half: usize| {
                let weight = weight_row(args, expert, half, row);
                let products = weight.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                products
                    .fold((0.0, 0.0), |(sum, all): (f64, f64), one| (sum + one, all + one.abs()))
            };
            let ((gate, of_gate), (up, of_up)) = (product(0), product(1));
            let (value, loss) = Activation::of(p.activation).reference(gate);
            // The activation's slope is less than 1.2.
            let off = 1.2 * relative * of_gate + loss;
            let bound = off * (up.abs() + relative * of_up) + value.abs() * relative * of_up;
            let value = value * up;
            let bound = bound + 2.0 * U * value.abs() + storing(args.variant.output, value);
            expected.push(value, bound);
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let rows = p.rows as usize;
    for (place, (x, expert)) in places(args).into_iter().enumerate() {
        let value = |row: usize| -> f32 {
            let Some(expert) = expert else { return 0.0 };
            let [gate, up] =
                [0, 1].map(|half| super::dot(&weight_row(args, expert, half, row), &x));
            up * Activation::of(p.activation).value(gate)
        };
        let line: Vec<f32> = (0..rows).into_par_iter().map(value).collect();
        outputs.store(0, place * p.width as usize + p.row_start as usize, &line);
    }
}

fn case(width: usize, columns: usize, tokens: usize, group: u32, activation: Activation) -> Case {
    let label = format!(
        "width={width},columns={columns},tokens={tokens},group={group},activation={activation:?}"
    );
    Case::new(label, move |variant: &Variant| {
        let (experts, used) = (5, 2);
        let mut random = Random::new(70);
        let packed = weights::random(&mut random, variant, experts * 2 * width, columns, group);
        let stride = columns.next_multiple_of(4);
        let mut x = random.values(tokens * stride, 0.03);
        // Rows are padded with zeros.
        x.chunks_exact_mut(stride).for_each(|line| line[columns..].fill(0.0));
        // One more than there are: none.
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
            activation: activation.code(),
            layout: Layout::new(packed.format, columns),
        };
        let [codes, scales] = weights::host(&packed);
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[tokens, stride], &x),
            codes,
            scales,
            HostTensor::from_u32(&[tokens, used], &chosen),
            HostTensor::zeros(variant.output, &[tokens * used, width]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 20),
        4 * sizes.between(1, 1, 100) - sizes.between(2, 0, 3),
        sizes.between(3, 1, 5),
        sizes.group(4),
        [Activation::Silu, Activation::GeluTanh][sizes.between(5, 0, 1)],
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(5, 97, 4, WHOLE_ROW, Activation::Silu),
        case(3, 576, 3, 32, Activation::Silu),
        case(4, 64, 3, 16, Activation::GeluTanh),
        // One column in the second vector of an invocation.
        case(3, 21, 5, WHOLE_ROW, Activation::Silu),
    ]
}
