//! `attention/mix`: rows of a cache, summed by the weights that tokens give them: result[t, h] = scale * sum_k weight[t, h, k]
//! value[k, h] over the keys that a token sees. Attention's result from its weights; queries' gradient from that of scores.

use super::stored::{LARGE, Params, Row, SHAPES, Shape, cost, random_shape};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/mix",
    source: include_str!("../../../shaders/attention/mix.wgsl"),
    bindings: &[
        binding("weights", Access::Read, Element::Is(DType::F32)),
        binding("value", Access::Read, Element::Activation),
        binding("ends", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::ReadWrite, Element::Output),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let pairs = [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::F16, DType::F32)];
        pairs.map(|(activation, output)| Variant::typed(activation, output)).to_vec()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tokens as usize * p.heads as usize)
    },
    cost: |args| cost(args, 2.0, 1.0),
    reference,
    cpu: Some(cpu),
    cases,
    random: |sizes| case(random_shape(sizes), ""),
    ..Kernel::BASE
};

/// Sums for some tokens. `tensors`: the weights, the cache, ends, and the result of all tokens.
pub(super) fn mix(device: &Device, params: Params, tensors: [&Tensor; 4]) -> Result<()> {
    let variant = Variant::typed(tensors[1].dtype(), tensors[3].dtype());
    device.call(&KERNEL, variant, &params, &tensors)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (weights, value) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let (dim, scale) = (p.head_dim as usize, f64::from(p.scale));
    let mut expected = Expected::exact(args.tensors[3].to_f64());
    let line = |row: Row| {
        let sum = |column: usize| {
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for key in 0..row.keys {
                let product = weights[row.line + key] * row.key(&value, key, dim)[column];
                sum += product;
                magnitude += product.abs();
            }
            let sum = sum * scale;
            let bound = gamma(row.keys + 1) * magnitude * scale.abs();
            (sum, bound + storing(args.variant.output, sum))
        };
        (row.own, (0..dim).map(sum).collect::<Vec<_>>())
    };
    let lines: Vec<_> = Row::all(p, args.tensors[2].u32s()).map(line).collect();
    lines.into_iter().for_each(|(start, line)| expected.put(start, line));
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (weights, value) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let dim = p.head_dim as usize;
    let line = |row: Row| {
        let mut sums = vec![0.0; dim];
        for key in 0..row.keys {
            super::backward::add(&mut sums, weights[row.line + key], row.key(&value, key, dim));
        }
        sums.iter_mut().for_each(|sum| *sum *= p.scale);
        (row.own, sums)
    };
    let lines: Vec<_> = Row::all(p, args.tensors[2].u32s()).map(line).collect();
    lines.into_iter().for_each(|(start, line)| outputs.store(0, start, &line));
}

fn case(shape: Shape, note: &'static str) -> Case {
    Case::new(shape.label(note), move |variant: &Variant| {
        let mut random = Random::new(72);
        let weights = shape.of_pairs(&mut random, note != ",signed");
        let value = shape.of_keys(&mut random, variant.activation);
        let before = shape.of_tokens(&mut random, variant.output, 1.0);
        shape.params().case(vec![weights, value, shape.ends_tensor(), before])
    })
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = SHAPES.iter().map(|shape| case(*shape, "")).collect();
    cases.push(case(SHAPES[0], ",signed"));
    cases.push(case(SHAPES[0], "").with(Poison::Zeros));
    cases.push(case(SHAPES[6], "").with(Poison::Infinity));
    cases.push(case(Shape::new(1051, 1, 1, 1), ",many"));
    cases.extend(LARGE.iter().map(|shape| case(*shape, "").bench()));
    cases
}
