//! Cases of attention's backward kernels: layers with a forward result and what the kernels make of it, in f64 and plainly.

use super::Attention;
use super::backward::{Params, owners};
use super::causal::random_scores;
use crate::kernels::prelude::*;

/// A layer's inputs, its result and that result's gradient, rounded to the variant's type.
pub(super) struct Example {
    sequences: usize,
    each: usize,
    capacity: usize,
    heads: Attention,
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) value: Vec<f32>,
    pub(super) result: Vec<f32>,
    pub(super) grad: Vec<f32>,
    /// The log-sum-exp and the result's product with its gradient, of each token and head.
    pub(super) lse_delta: Vec<f32>,
}

impl Example {
    fn new(
        (sequences, each, heads, note): (usize, usize, Attention, &'static str),
        dtype: DType,
    ) -> Self {
        let mut random = Random::new(8);
        let tokens = sequences * each;
        let capacity = if note == ",full" { each } else { each + 3 };
        let (width, pitch) = (heads.query * heads.dim, heads.kv * heads.dim);
        let mut query = random.values(tokens * width, 3.0);
        let mut grad = random.values(tokens * width, 1.0);
        match note {
            ",large" => query.iter_mut().for_each(|v| *v *= 60.0),
            ",zeros" => query.fill(0.0),
            ",nan" => query[0] = f32::NAN,
            ",nan-grad" => grad[(tokens / 2) * width] = f32::NAN,
            _ => {}
        }
        // Places of the cache that no token has written may hold anything.
        let mut cache = || {
            let mut values = random.values(sequences * capacity * pitch, 1.0);
            for sequence in values.chunks_exact_mut(capacity * pitch) {
                sequence[each * pitch..].fill(f32::NAN);
            }
            rounded(dtype, &values)
        };
        let (key, value) = (cache(), cache());
        let mut example = Self {
            sequences,
            each,
            capacity,
            heads,
            query: rounded(dtype, &query),
            key,
            value,
            result: Vec::new(),
            grad: rounded(dtype, &grad),
            lse_delta: Vec::new(),
        };
        example.forward(dtype);
        example
    }

    /// The result and the lse_delta.
    fn forward(&mut self, dtype: DType) {
        let Attention { query, dim, .. } = self.heads;
        let rows = self.sequences * self.each * query;
        let lines: Vec<(Vec<f32>, f64)> =
            (0..rows).into_par_iter().map(|row| self.head(row / query, row % query)).collect();
        let result = lines.iter().flat_map(|(line, _)| line).copied();
        self.result = rounded(dtype, &result.collect::<Vec<f32>>());
        let both = self.result.chunks_exact(dim).zip(self.grad.chunks_exact(dim));
        self.lse_delta = both
            .zip(&lines)
            .flat_map(|((result, grad), (_, lse))| {
                let products = result.iter().zip(grad);
                let delta: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                [*lse as f32, delta as f32]
            })
            .collect();
    }

    /// The result of one head of a token, and its log-sum-exp.
    fn head(&self, token: usize, head: usize) -> (Vec<f32>, f64) {
        let Attention { query, kv, dim, .. } = self.heads;
        let (sequence, order) = (token / self.each, token % self.each);
        let row = |values: &[f32], place: usize| -> Vec<f64> {
            let at = ((sequence * self.capacity + place) * kv + head / (query / kv)) * dim;
            values[at..at + dim].iter().copied().map(f64::from).collect()
        };
        let at = (token * query + head) * dim;
        let first = (order + 1).saturating_sub(self.heads.window.unwrap_or(usize::MAX));
        let scores: Vec<f64> = (first..=order)
            .map(|place| {
                let products = self.query[at..at + dim].iter().zip(row(&self.key, place));
                let sum: f64 = products.map(|(q, k)| f64::from(*q) * k).sum();
                let score = sum * f64::from(self.heads.scale);
                let cap = self.heads.soft_cap.map(f64::from);
                cap.map_or(score, |cap| cap * (score / cap).tanh())
            })
            .collect();
        let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - maximum).exp()).sum();
        let lse = maximum + total.ln();
        let mut sums = vec![0.0; dim];
        for (place, score) in (first..).zip(&scores) {
            for (sum, value) in sums.iter_mut().zip(row(&self.value, place)) {
                *sum += (score - lse).exp() * value;
            }
        }
        (sums.iter().map(|sum| *sum as f32).collect(), lse)
    }

    /// (all tokens, heads, head_dim).
    pub(super) fn tokens(&self, values: &[f32], variant: &Variant) -> HostTensor {
        let shape = [self.sequences * self.each, self.heads.query, self.heads.dim];
        HostTensor::from_f32(variant.activation, &shape, values)
    }

    /// (sequences, capacity, kv_heads, head_dim).
    pub(super) fn cache(&self, values: &[f32], variant: &Variant) -> HostTensor {
        let shape = [self.sequences, self.capacity, self.heads.kv, self.heads.dim];
        HostTensor::from_f32(variant.activation, &shape, values)
    }

    /// (all tokens, heads, head_dim), of the results' type: the result, or what stands there before.
    pub(super) fn results(&self, variant: &Variant) -> HostTensor {
        let shape = [self.sequences * self.each, self.heads.query, self.heads.dim];
        HostTensor::from_f32(variant.output, &shape, &self.result)
    }

    /// (sequences, capacity, heads, head_dim), of the results' type: what stands there before.
    pub(super) fn parts(&self, variant: &Variant) -> HostTensor {
        let shape = [self.sequences, self.capacity, self.heads.query, self.heads.dim];
        let values = Random::new(9).values(shape.iter().product(), 1.0);
        HostTensor::from_f32(variant.output, &shape, &values)
    }

    /// (all tokens, heads, 2).
    pub(super) fn known(&self, values: &[f32]) -> HostTensor {
        let shape = [self.sequences * self.each, self.heads.query, 2];
        HostTensor::from_f32(DType::F32, &shape, values)
    }
}

fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    HostTensor::from_f32(dtype, &[values.len()], values).to_f32()
}

/// A case of (sequences, tokens of each, heads, note), whose tiles are of tokens, or of places in the cache.
pub(super) fn case(
    shape: (usize, usize, Attention, &'static str),
    of_places: bool,
    tensors: fn(&Example, &Variant) -> Vec<HostTensor>,
) -> Case {
    let (sequences, each, heads, note) = shape;
    let Attention { query, kv, dim, .. } = heads;
    let scores = heads.score_label();
    let label = format!(
        "sequences={sequences},tokens={each},heads={query}/{kv},head_dim={dim}{scores}{note}"
    );
    let case = Case::new(label, move |variant: &Variant| {
        let example = Example::new(shape, variant.activation);
        let length = if of_places { example.capacity } else { each };
        let tiles = sequences * length.div_ceil(owners(variant));
        let skip = usize::from(note == ",part");
        let params =
            Params::new(&heads, (sequences, each, example.capacity), (skip, tiles - 2 * skip));
        params.case(tensors(&example, variant))
    });
    match dim {
        0..=64 => case,
        65..=128 => case.only(|variant| variant.constant("DIM") >= 128),
        _ => case.only(|variant| variant.constant("DIM") >= 256),
    }
}

/// Makes a kernel's case of (sequences, tokens of each, heads, note).
type Make = fn(usize, usize, Attention, &'static str) -> Case;

pub(super) fn random(sizes: &Sizes, make: Make) -> Case {
    let kv = sizes.between(2, 1, 3);
    let heads = Attention::new(kv * sizes.between(3, 1, 4), kv, 4 * sizes.between(4, 1, 64));
    let heads = random_scores(sizes, heads);
    make(sizes.between(0, 1, 3), sizes.between(1, 1, 60), heads, "")
}

fn dim_64(variant: &Variant) -> bool {
    variant.constant("DIM") == 64
}

pub(super) fn cases(make: Make) -> Vec<Case> {
    let heads = Attention::new;
    vec![
        make(2, 5, heads(4, 2, 24), ""),
        make(1, 48, heads(9, 3, 64), ",full"),
        make(2, 70, heads(3, 1, 12), ""),
        make(1, 1, heads(1, 1, 4), ""),
        make(1, 150, heads(2, 1, 64), ""),
        make(1, 75, heads(4, 2, 128), ""),
        make(2, 9, heads(2, 1, 252), ""),
        make(1, 67, heads(1, 1, 256), ",full"),
        make(2, 40, heads(2, 1, 8), ",part"),
        make(1, 18, heads(2, 1, 32), ",large"),
        make(1, 18, heads(2, 2, 64), ",zeros"),
        make(1, 77, heads(2, 1, 8), ",nan"),
        make(1, 77, heads(2, 1, 8), ",nan-grad"),
        // Windows: of one key, of no whole four, of less than a tile, of more, longer than all.
        make(2, 40, heads(2, 1, 8).with_window(1), ""),
        make(1, 140, heads(4, 2, 16).with_window(6), ""),
        make(1, 150, heads(4, 1, 256).with_window(50), ""),
        make(2, 170, heads(3, 1, 64).with_window(67), ",full"),
        make(1, 33, heads(2, 1, 8).with_window(400), ""),
        make(1, 77, heads(2, 1, 8).with_window(7), ",nan"),
        make(1, 77, heads(2, 1, 8).with_window(7), ",nan-grad"),
        make(1, 70, heads(4, 2, 16).with_soft_cap(2.0), ""),
        make(1, 18, heads(2, 1, 32).with_soft_cap(2.0), ",large"),
        make(1, 77, heads(2, 1, 8).with_soft_cap(2.0), ",nan"),
        make(2, 90, heads(4, 1, 128).with_window(33).with_soft_cap(1.0), ""),
        make(1, 200, heads(4, 2, 60), ",part"),
        make(2, 140, heads(2, 1, 112), ",part"),
        make(1, 2048, heads(32, 4, 64), ",full").only(dim_64).bench(),
        make(8, 512, heads(9, 3, 64), ",full").only(dim_64).bench(),
        make(10, 64, heads(9, 3, 64), ",full").only(dim_64).bench(),
        make(4, 512, heads(32, 4, 64), ",full").only(dim_64).bench(),
        make(1, 512, heads(32, 8, 128), ",full")
            .only(|variant| variant.constant("DIM") == 128)
            .bench(),
    ]
}
