//! `attention/weights_grad`: the gradient of attention at its scores: weight * (product - sum over keys of weight * product), with
//! the products of the result's gradient and the keys' values.

use super::backward::{dot, dot_reference};
use super::stored::{LARGE, Params, Row, SHAPES, Shape, cost, random_shape};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/weights_grad",
    source: include_str!("../../../shaders/attention/weights_grad.wgsl"),
    bindings: &[
        binding("weights", Access::Read, Element::Is(DType::F32)),
        binding("value", Access::Read, Element::Is(DType::F32)),
        binding("ends", Access::Read, Element::Is(DType::U32)),
        binding("grad", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || [false, true].map(|on| Variant::BASELINE.with_subgroups(on)).to_vec(),
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tokens as usize * p.heads as usize)
    },
    cost: |args| cost(args, 2.0, 4.0),
    reference,
    cpu: Some(cpu),
    cases,
    random: |sizes| case(random_shape(sizes)),
    ..Kernel::BASE
};

/// Writes the gradient of some tokens' scores. `tensors`: their weights, the values, ends, the gradient of all tokens' results, and
/// the result.
pub(super) fn weights_grad(device: &Device, params: Params, tensors: [&Tensor; 5]) -> Result<()> {
    let variant = Variant::BASELINE.with_subgroups(device.capabilities().subgroups);
    device.call(&KERNEL, variant, &params, &tensors)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let [weights, value, grad] = [0, 1, 3].map(|binding| args.tensors[binding].to_f64());
    let dim = p.head_dim as usize;
    let line = |row: Row| {
        let own = &grad[row.own..row.own + dim];
        let products: Vec<(f64, f64)> = (0..row.keys)
            .map(|key| dot_reference(own, row.key(&value, key, dim)))
            .map(|(product, magnitude)| (product, gamma(dim) * magnitude))
            .collect();
        let weights = &weights[row.line..row.line + row.keys];
        let (mut sum, mut error) = (0.0, 0.0);
        for (weight, (product, bound)) in weights.iter().zip(&products) {
            sum += weight * product;
            error += weight.abs() * (bound + gamma(row.keys + 1) * (product.abs() + bound));
        }
        let of = |(weight, (product, bound)): (&f64, &(f64, f64))| {
            let value = weight * (product - sum);
            let off = bound + error + 2.0 * U * (product.abs() + sum.abs());
            (value, weight.abs() * off * (1.0 + 4.0 * U) + storing(DType::F32, value))
        };
        let hidden = p.columns as usize - row.keys;
        let unseen = std::iter::repeat_n((0.0, 0.0), hidden);
        weights.iter().zip(&products).map(of).chain(unseen).collect::<Vec<_>>()
    };
    let lines: Vec<Vec<(f64, f64)>> = Row::all(p, args.tensors[2].u32s()).map(line).collect();
    let mut expected = Expected::default();
    lines.into_iter().flatten().for_each(|(value, bound)| expected.push(value, bound));
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let [weights, value, grad] = [0, 1, 3].map(|binding| args.tensors[binding].to_f32());
    let dim = p.head_dim as usize;
    let line = |row: Row| {
        let own = &grad[row.own..row.own + dim];
        let weights = &weights[row.line..row.line + row.keys];
        let mut line = vec![0.0; p.columns as usize];
        let seen = &mut line[..row.keys];
        for (key, product) in seen.iter_mut().enumerate() {
            *product = dot(own, row.key(&value, key, dim));
        }
        let sum = dot(weights, seen);
        for (product, weight) in seen.iter_mut().zip(weights) {
            *product = weight * (*product - sum);
        }
        line
    };
    let lines: Vec<Vec<f32>> = Row::all(p, args.tensors[2].u32s()).map(line).collect();
    outputs.store(0, 0, &lines.concat());
}

fn case(shape: Shape) -> Case {
    Case::new(shape.label(""), move |_: &Variant| {
        let mut random = Random::new(73);
        let weights = shape.of_pairs(&mut random, true);
        let value = shape.of_keys(&mut random, DType::F32);
        let grad = shape.of_tokens(&mut random, DType::F32, 2.0);
        let result = HostTensor::zeros(DType::F32, &weights.shape);
        shape.params().case(vec![weights, value, shape.ends_tensor(), grad, result])
    })
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = SHAPES.iter().map(|shape| case(*shape)).collect();
    cases.push(case(SHAPES[0]).with(Poison::Zeros));
    cases.push(case(SHAPES[0]).poisoned(3, Poison::NaN));
    cases.extend(LARGE.iter().map(|shape| case(*shape).bench()));
    cases
}
