//! `attention/mix_grad`: what every key has of the tokens of its sequence: result[k, h] = scale * sum_t weight[t, h, k] x[t, h].
//! Values' gradient from the weights and the result's gradient; keys' gradient from that of scores and the queries.

use super::stored::{LARGE, Params, SHAPES, Shape, cost, random_shape};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/mix_grad",
    source: include_str!("../../../shaders/attention/mix_grad.wgsl"),
    bindings: &[
        binding("weights", Access::Read, Element::Is(DType::F32)),
        binding("x", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| {
        let p: Params = args.parameters();
        let sequences = p.tokens / p.tokens_per_sequence;
        fold(sequences as usize * p.columns as usize * p.heads as usize)
    },
    cost: |args| cost(args, 2.0, 1.0),
    reference,
    cpu: Some(cpu),
    cases,
    random: |sizes| case(random_shape(sizes)),
    ..Kernel::BASE
};

/// Sums for the keys of some whole sequences. `tensors`: the weights of their tokens, which are 0 for keys that a token does not
/// see, the rows of all tokens, and the result of all caches.
pub(super) fn mix_grad(device: &Device, params: Params, tensors: [&Tensor; 3]) -> Result<()> {
    device.call(&KERNEL, Variant::BASELINE, &params, &tensors)
}

/// A head of a key of a call: where its sums go, and of each token of its sequence where the weight and the row stand.
fn places(p: &Params, index: usize) -> (usize, impl Iterator<Item = (usize, usize)> + Clone) {
    let (heads, columns, dim) = (p.heads as usize, p.columns as usize, p.head_dim as usize);
    let (head, key, within) = (index % heads, index / heads % columns, index / heads / columns);
    let each = p.tokens_per_sequence as usize;
    let sequence = p.token_start as usize / each + within;
    let to = sequence * p.capacity as usize + p.first as usize + key;
    let token = move |order: usize| {
        let weight = ((within * each + order) * heads + head) * columns + key;
        (weight, ((sequence * each + order) * heads + head) * dim)
    };
    ((to * heads + head) * dim, (0..each).map(token))
}

fn count(p: &Params) -> usize {
    (p.tokens / p.tokens_per_sequence * p.columns * p.heads) as usize
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (weights, x) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let (dim, scale) = (p.head_dim as usize, f64::from(p.scale));
    let mut expected = Expected::exact(args.tensors[2].to_f64());
    for index in 0..count(&p) {
        let (to, tokens) = places(&p, index);
        let sum = |column: usize| {
            let products = tokens.clone().map(|(weight, row)| weights[weight] * x[row + column]);
            let sum = products.clone().sum::<f64>() * scale;
            let magnitude = products.map(f64::abs).sum::<f64>() * scale.abs();
            let bound = gamma(p.tokens_per_sequence as usize + 1) * magnitude;
            (sum, bound + storing(DType::F32, sum))
        };
        expected.put(to, (0..dim).map(sum).collect::<Vec<_>>());
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (weights, x) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let dim = p.head_dim as usize;
    let line = |index: usize| {
        let (to, tokens) = places(&p, index);
        let mut sums = vec![0.0; dim];
        for (weight, row) in tokens {
            super::backward::add(&mut sums, weights[weight], &x[row..row + dim]);
        }
        sums.iter_mut().for_each(|sum| *sum *= p.scale);
        (to, sums)
    };
    let lines: Vec<_> = (0..count(&p)).into_par_iter().map(line).collect();
    lines.into_iter().for_each(|(to, line)| outputs.store(0, to, &line));
}

fn case(shape: Shape) -> Case {
    Case::new(shape.label(""), move |_: &Variant| {
        let mut random = Random::new(74);
        let weights = shape.of_pairs(&mut random, false);
        let x = shape.of_tokens(&mut random, DType::F32, 2.0);
        let before = shape.of_keys(&mut random, DType::F32);
        let zeros = HostTensor::zeros(DType::F32, &before.shape);
        shape.params().case(vec![weights, x, zeros])
    })
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = SHAPES.iter().map(|shape| case(*shape)).collect();
    cases.push(case(SHAPES[0]).with(Poison::Zeros));
    cases.push(case(SHAPES[0]).poisoned(1, Poison::NaN));
    cases.extend(LARGE.iter().map(|shape| case(*shape).bench()));
    cases
}
