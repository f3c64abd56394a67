//! `attention/query_grad`: the gradient of attention's queries, scale * sum_j p_j (dp_j - delta) k_j over the keys that
//! a token sees, with p_j = exp(score_j - log-sum-exp) and dp_j = grad · v_j computed on the way (Dao 2023, FlashAttention-2,
//! arXiv 2307.08691).

use super::backward::{self, Inputs, Params, add, add_reference, dot, own_tokens};
use super::examples::{self, Example};
use super::score;
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/query_grad",
    source: include_str!("../../../shaders/attention/query_grad.wgsl"),
    bindings: BINDINGS,
    parameters: Params::LAYOUT,
    variants: backward::grad_variants,
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tiles as usize * p.heads as usize)
    },
    cost: |args| backward::cost(args, 6.0, false),
    reference,
    cpu: Some(cpu),
    cases: || examples::cases(case),
    random: |sizes: &Sizes| examples::random(sizes, case),
    ..Kernel::BASE
};

pub(super) const BINDINGS: &[Binding] = &[
    binding("query", Access::Read, Element::Activation),
    binding("key", Access::Read, Element::Activation),
    binding("value", Access::Read, Element::Activation),
    binding("grad", Access::Read, Element::Activation),
    binding("lse_delta", Access::Read, Element::Is(DType::F32)),
    binding("places", Access::Read, Element::Is(DType::U32)),
    binding("result", Access::ReadWrite, Element::Output),
];

/// The (token, head)s of a call.
pub(super) fn rows(args: &Args<'_>) -> Vec<((usize, usize), usize)> {
    let p: Params = args.parameters();
    own_tokens(args)
        .into_iter()
        .flat_map(|token| (0..p.heads as usize).map(move |head| (token, head)))
        .collect()
}

pub(super) fn reference(args: &Args<'_>) -> Vec<Expected> {
    let inputs = Inputs::new(args);
    let p = inputs.p;
    let (columns, scale) = (p.head_dim as usize, f64::from(p.scale));
    let lines: Vec<(usize, Vec<(f64, f64)>)> = rows(args)
        .into_par_iter()
        .map(|(token, head)| {
            let mut sums = vec![(0.0, 0.0); columns];
            for place in p.seen(inputs.places[token.0], token.1) {
                let pair = inputs.pair(token, head, place);
                let there = p.place((token.0, place), head / p.group());
                let key = &inputs.key[there..there + columns];
                let terms = p.seen(inputs.places[token.0], token.1).len();
                add_reference(&mut sums, pair.score_grad, key, terms);
            }
            (p.token(token, head), sums)
        })
        .collect();
    let mut expected = Expected::exact(args.tensors[6].to_f64());
    for (start, line) in lines {
        for (column, (sum, bound)) in line.into_iter().enumerate() {
            let value = scale * sum;
            expected.values[start + column] = value;
            expected.bounds[start + column] = scale * bound + storing(args.variant.output, value);
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.head_dim as usize;
    let [query, key, value, grad, known] = [0, 1, 2, 3, 4].map(|b| args.tensors[b].to_f32());
    let words = args.tensors[5].u32s();
    let lines: Vec<(usize, Vec<f32>)> = rows(args)
        .into_par_iter()
        .map(|(token, head)| {
            let (at, row) = (p.token(token, head), 2 * p.row(token, head));
            let (query, grad) = (&query[at..at + columns], &grad[at..at + columns]);
            let mut sums = vec![0.0; columns];
            for place in p.seen(words[token.0], token.1) {
                let there = p.place((token.0, place), head / p.group());
                let key = &key[there..there + columns];
                let bias = p.bias((words[token.0], words), head, token.1, place);
                let score = score(dot(query, key) * p.scale + bias, p.soft_cap);
                let weight = (score - known[row]).exp();
                let weight_grad = dot(grad, &value[there..there + columns]);
                let score_grad = weight * (weight_grad - known[row + 1]);
                add(&mut sums, score_grad * p.slope(score), key);
            }
            sums.iter_mut().for_each(|sum| *sum *= p.scale);
            (at, sums)
        })
        .collect();
    for (start, line) in lines {
        outputs.store(0, start, &line);
    }
}

pub(super) fn case(shape: examples::Shape) -> Case {
    examples::case(shape, false, |example: &Example, variant: &Variant| {
        vec![
            example.tokens(&example.query, variant),
            example.cache(&example.key, variant),
            example.cache(&example.value, variant),
            example.tokens(&example.grad, variant),
            example.known(&example.lse_delta),
            example.places(),
            example.results(variant),
        ]
    })
}
