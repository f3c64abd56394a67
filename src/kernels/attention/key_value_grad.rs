//! `attention/key_value_grad`: each query head's part of the gradients of attention's keys and values, over the tokens
//! that see each: of a value, sum_i p_i grad_i; of a key, scale * sum_i p_i (dp_i - delta_i) q_i, with p_i = exp(score_i -
//! log-sum-exp_i) and dp_i = grad_i · v computed on the way (Dao 2023, FlashAttention-2, arXiv 2307.08691). Places of the
//! cache behind a sequence's tokens get zeros.
//!
//! Where query heads share a key-value head, [`attention/group_sum`](super::group_sum) adds the parts up: one workgroup for a
//! whole group left most of a large device idle beside few key-value heads.

use super::backward::{self, Inputs, Params, add, add_reference, dot, own_places};
use super::examples::{self, Example};
use super::score;
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/key_value_grad",
    source: include_str!("../../../shaders/attention/key_value_grad.wgsl"),
    bindings: BINDINGS,
    parameters: Params::LAYOUT,
    variants: backward::grad_variants,
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tiles as usize * p.heads as usize)
    },
    cost: |args| backward::cost(args, 8.0, true),
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
    binding("key_grad", Access::ReadWrite, Element::Output),
    binding("value_grad", Access::ReadWrite, Element::Output),
];

/// The (place in a cache, query head)s of a call.
fn rows(args: &Args<'_>) -> Vec<((usize, usize), usize)> {
    let p: Params = args.parameters();
    own_places(args)
        .into_iter()
        .flat_map(|place| (0..p.heads as usize).map(move |head| (place, head)))
        .collect()
}

/// The tokens that see a place.
fn seen_by(
    p: &Params,
    words: &[u32],
    (sequence, place): (usize, usize),
) -> impl ExactSizeIterator<Item = (usize, usize)> {
    let tokens = p.tokens_per_sequence as usize;
    let sees = match p.mask.causal {
        1 => place..tokens.min(place + p.window as usize).max(place),
        _ => 0..if place < words[sequence] as usize { tokens } else { 0 },
    };
    sees.map(move |token| (sequence, token))
}

/// Where a query head's part of the gradients at a place starts, in elements.
fn part(p: &Params, (sequence, place): (usize, usize), head: usize) -> usize {
    ((sequence * p.capacity as usize + place) * p.heads as usize + head) * p.head_dim as usize
}

/// Where a line stands, and the values and magnitudes of its gradients at the key and at the value.
type Line = (usize, [Vec<(f64, f64)>; 2]);

pub(super) fn reference(args: &Args<'_>) -> Vec<Expected> {
    let inputs = Inputs::new(args);
    let p = inputs.p;
    let (columns, scale) = (p.head_dim as usize, f64::from(p.scale));
    let lines: Vec<Line> = rows(args)
        .into_par_iter()
        .map(|(place, head)| {
            let mut key = vec![(0.0, 0.0); columns];
            let mut value = key.clone();
            let terms = seen_by(&p, &inputs.places, place).len();
            for token in seen_by(&p, &inputs.places, place) {
                let pair = inputs.pair(token, head, place.1);
                let at = p.token(token, head);
                let mine = at..at + columns;
                add_reference(&mut key, pair.score_grad, &inputs.query[mine.clone()], terms);
                add_reference(&mut value, pair.weight, &inputs.grad[mine], terms);
            }
            (part(&p, place, head), [key, value])
        })
        .collect();
    let mut expected = [6, 7].map(|binding| Expected::exact(args.tensors[binding].to_f64()));
    let written = |(start, _): &(usize, _)| {
        let row = start / (p.heads * p.head_dim) as usize;
        let (sequence, place) = (row / p.capacity as usize, row % p.capacity as usize);
        let count = [inputs.places[sequence], p.tokens_per_sequence][p.mask.causal as usize];
        place < count as usize
    };
    for entry in lines {
        // Behind the tokens there is nothing to round.
        let exact = !written(&entry);
        let (start, both) = entry;
        for ((expected, line), scale) in expected.iter_mut().zip(both).zip([scale, 1.0]) {
            for (column, (sum, bound)) in line.into_iter().enumerate() {
                let value = scale * sum;
                let storing = storing(args.variant.output, value);
                expected.values[start + column] = value;
                expected.bounds[start + column] = if exact { 0.0 } else { scale * bound + storing };
            }
        }
    }
    expected.into()
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.head_dim as usize;
    let [query, key, value, grad, known] = [0, 1, 2, 3, 4].map(|b| args.tensors[b].to_f32());
    let words = args.tensors[5].u32s();
    let lines: Vec<(usize, [Vec<f32>; 2])> = rows(args)
        .into_par_iter()
        .map(|(place, head)| {
            let start = p.place(place, head / p.group());
            let (key, value) = (&key[start..start + columns], &value[start..start + columns]);
            let (mut key_sums, mut value_sums) = (vec![0.0; columns], vec![0.0; columns]);
            for token in seen_by(&p, words, place) {
                let (at, row) = (p.token(token, head), 2 * p.row(token, head));
                let (query, grad) = (&query[at..at + columns], &grad[at..at + columns]);
                let bias = p.bias((words[token.0], words), head, token.1, place.1);
                let score = score(dot(query, key) * p.scale + bias, p.soft_cap);
                let weight = (score - known[row]).exp();
                let score_grad = weight * (dot(grad, value) - known[row + 1]) * p.slope(score);
                add(&mut value_sums, weight, grad);
                add(&mut key_sums, score_grad, query);
            }
            key_sums.iter_mut().for_each(|sum| *sum *= p.scale);
            (part(&p, place, head), [key_sums, value_sums])
        })
        .collect();
    for (start, [key, value]) in lines {
        outputs.store(0, start, &key);
        outputs.store(1, start, &value);
    }
}

pub(super) fn case(shape: examples::Shape) -> Case {
    examples::case(shape, true, |example: &Example, variant: &Variant| {
        vec![
            example.tokens(&example.query, variant),
            example.cache(&example.key, variant),
            example.cache(&example.value, variant),
            example.tokens(&example.grad, variant),
            example.known(&example.lse_delta),
            example.places(),
            example.parts(variant),
            example.parts(variant),
        ]
    })
}
