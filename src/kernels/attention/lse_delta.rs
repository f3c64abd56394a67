//! `attention/lse_delta`: what the backward pass of attention needs of each token and head, in f32: the log-sum-exp
//! of its scores, from which the other kernels compute the softmax's weights again, and the dot product of its result and
//! that result's gradient (Dao 2023, FlashAttention-2, arXiv 2307.08691: L and D).

use super::backward::{self, Params, dot, dot_reference, own_tokens};
use super::examples::{self, Example};
use super::{score, score_reference};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/lse_delta",
    source: include_str!("../../../shaders/attention/lse_delta.wgsl"),
    bindings: &[
        binding("query", Access::Read, Element::Activation),
        binding("key", Access::Read, Element::Activation),
        binding("result", Access::Read, Element::Output),
        binding("grad", Access::Read, Element::Activation),
        binding("places", Access::Read, Element::Is(DType::U32)),
        binding("lse_delta", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: backward::grad_variants,
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tiles as usize * p.heads as usize)
    },
    cost: |args| backward::cost(args, 2.0, false),
    reference,
    cpu: Some(cpu),
    cases: || examples::cases(case),
    random: |sizes: &Sizes| examples::random(sizes, case),
    ..Kernel::BASE
};

/// The (token, head)s of a call.
fn rows(args: &Args<'_>) -> impl ParallelIterator<Item = ((usize, usize), usize)> {
    let p: Params = args.parameters();
    let heads = p.heads as usize;
    own_tokens(args)
        .into_par_iter()
        .flat_map_iter(move |token| (0..heads).map(move |head| (token, head)))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.head_dim as usize;
    let [query, key, result, grad] = [0, 1, 2, 3].map(|binding| args.tensors[binding].to_f64());
    let words = args.tensors[4].u32s();
    let lines: Vec<(usize, [(f64, f64); 2])> = rows(args)
        .map(|(token, head)| {
            let at = p.token(token, head);
            let mine = at..at + columns;
            let sees = (words[token.0], words);
            let scores = scores_reference(&p, (&query, &key), sees, (token, head), 1.0);
            let (delta, magnitude) = dot_reference(&result[mine.clone()], &grad[mine]);
            let delta_bound = gamma(columns) * magnitude + storing(DType::F32, delta);
            let lse = log_sum_exp(&scores);
            (2 * p.row(token, head), [lse, (delta, delta_bound)])
        })
        .collect();
    let mut expected = Expected::exact(args.tensors[5].to_f64());
    for (start, line) in lines {
        expected.put(start, line);
    }
    vec![expected]
}

/// The scores of a token's head beside the keys that it sees by what is said of its sequence and biases' words, each with its error,
/// of sums with so much slack.
pub(super) fn scores_reference(
    p: &Params,
    (query, key): (&[f64], &[f64]),
    (end, words): (u32, &[u32]),
    (token, head): ((usize, usize), usize),
    slack: f64,
) -> Vec<(f64, f64)> {
    let (columns, at) = (p.head_dim as usize, p.token(token, head));
    let score = |place: usize| {
        let there = p.place((token.0, place), head / p.group());
        let (sum, magnitude) =
            dot_reference(&query[at..at + columns], &key[there..there + columns]);
        let bias = f64::from(p.bias((end, words), head, token.1, place));
        let terms = columns + 2 + usize::from(p.mask.distances > 0);
        let error = slack * gamma(terms) * (magnitude * f64::from(p.scale) + bias.abs());
        score_reference(sum * f64::from(p.scale) + bias, error, p.soft_cap)
    };
    p.seen(end, token.1).map(score).collect()
}

/// log(sum(exp(scores))) and its bound, of scores with their errors.
///
/// The errors of scores reach it as their weighted mean. Each term's exp is off by (3 + 2 |x|) ulp, once below the maximum
/// of its part and once from there to the whole's; every new maximum costs a part another 3 ulp.
pub(super) fn log_sum_exp(scores: &[(f64, f64)]) -> (f64, f64) {
    let maximum = scores.iter().map(|(score, _)| *score).fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut weighted, mut score_error) = (0.0, 0.0, 0.0f64);
    for (score, error) in scores {
        let term = (score - maximum).exp();
        sum += term;
        weighted += term * (16.0 + 12.0 * (maximum - score).min(100.0)) * U;
        score_error = score_error.max(*error);
    }
    let value = maximum + sum.ln();
    let log = f64::powi(2.0, -21).max(6.0 * U * sum.ln().abs());
    let bound = 2.0 * score_error
        + weighted / sum
        + 4.0 * gamma(scores.len())
        + log
        + storing(DType::F32, value)
        + 2.0 * U * maximum.abs();
    (value, bound)
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.head_dim as usize;
    let [query, key, result, grad] = [0, 1, 2, 3].map(|binding| args.tensors[binding].to_f32());
    let words = args.tensors[4].u32s();
    let lines: Vec<(usize, [f32; 2])> = rows(args)
        .map(|(token, head)| {
            let at = p.token(token, head);
            let mine = at..at + columns;
            let of = |place: usize| {
                let there = p.place((token.0, place), head / p.group());
                let sum = dot(&query[mine.clone()], &key[there..there + columns]);
                let bias = p.bias((words[token.0], words), head, token.1, place);
                score(sum * p.scale + bias, p.soft_cap)
            };
            let scores: Vec<f32> = p.seen(words[token.0], token.1).map(of).collect();
            let maximum = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = scores.iter().map(|score| (score - maximum).exp()).sum();
            let delta = dot(&result[mine.clone()], &grad[mine.clone()]);
            (2 * p.row(token, head), [maximum + sum.ln(), delta])
        })
        .collect();
    for (start, line) in lines {
        outputs.store(0, start, &line);
    }
}

fn case(shape: examples::Shape) -> Case {
    examples::case(shape, false, |example: &Example, variant: &Variant| {
        vec![
            example.tokens(&example.query, variant),
            example.cache(&example.key, variant),
            example.results(variant),
            example.tokens(&example.grad, variant),
            example.places(),
            example.known(&vec![0.5; example.lse_delta.len()]),
        ]
    })
}
