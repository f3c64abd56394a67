//! `attention/causal`: softmax(q k^T * scale + bias) v over the keys up to each token's own position, or over all of another text,
//! with grouped key-value heads (Ainslie et al. 2023): query head h reads key-value head h / (heads / kv_heads). The softmax runs
//! along the keys with a running maximum (Milakov and Gimelshein 2018), so no score matrix is stored.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::backward::half_factor;
use super::bias::words;
use super::tiled::tiled;
use super::{Attention, Mask, Seen, on_matrix_units, score, score_reference, sum_slack};
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        token_start: u32,
        tokens_per_sequence: u32,
        sequences: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        capacity: u32,
        scale: f32,
        /// Keys that a token sees, itself among them.
        window: u32,
        /// 0: none.
        soft_cap: f32,
        mask: Mask,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/causal",
    source: include_str!("../../../shaders/attention/causal.wgsl"),
    bindings: BINDINGS,
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants,
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tokens as usize * p.heads as usize)
    },
    cost,
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

const BINDINGS: &[Binding] = &[
    binding("query", Access::Read, Element::Activation),
    binding("key", Access::Read, Element::Activation),
    binding("value", Access::Read, Element::Activation),
    binding("past", Access::Read, Element::Is(DType::U32)),
    binding("places", Access::Read, Element::Is(DType::U32)),
    binding("result", Access::ReadWrite, Element::Output),
];

/// Attention of `query`, (tokens, heads, head_dim), over caches of (sequences, capacity, kv_heads, head_dim) that hold
/// the new tokens already.
pub fn causal(
    device: &Device,
    query: &Tensor,
    (key, value): (&Tensor, &Tensor),
    seen: Seen<'_>,
    heads: Attention,
    capacity: usize,
) -> Result<Tensor> {
    let output = query.dtype();
    run(device, query, (key, value), seen, heads, capacity, output).map(|(result, _)| result)
}

/// The same with the result in f32, as the backward pass wants it: rounded to f16, it would put every gradient off. And where they are computed on the way the log-sum-exps that the backward pass needs, f32 (tokens, heads, 2), each
/// with a place behind it.
pub fn forward(
    device: &Device,
    query: &Tensor,
    (key, value): (&Tensor, &Tensor),
    seen: Seen<'_>,
    heads: Attention,
    capacity: usize,
) -> Result<(Tensor, Option<Tensor>)> {
    run(device, query, (key, value), seen, heads, capacity, DType::F32)
}

fn run(
    device: &Device,
    query: &Tensor,
    (key, value): (&Tensor, &Tensor),
    seen: Seen<'_>,
    heads: Attention,
    capacity: usize,
    output: DType,
) -> Result<(Tensor, Option<Tensor>)> {
    assert!(seen.causal || heads.window.is_none(), "who sees all keys has no window");
    // The CPU has a version of its own, for any number of tokens.
    if device.gpu().is_some()
        && let Some((result, known)) =
            tiled(device, query, (key, value), seen, heads, capacity, output)?
    {
        return Ok((result, Some(known)));
    }
    let tokens = query.shape()[0];
    let result = device.allocate(output, query.shape(), "attention")?;
    // No token sees more keys than the cache or its window holds.
    let each = 4.0 * (heads.query * heads.dim * heads.keys(capacity)) as f64;
    let step = ((device.call_limit().operations / each) as usize).max(1);
    for start in (0..tokens).step_by(step) {
        let params = Params {
            tokens: step.min(tokens - start) as u32,
            token_start: start as u32,
            tokens_per_sequence: (tokens / seen.ends.len()) as u32,
            sequences: seen.ends.len() as u32,
            heads: heads.query as u32,
            kv_heads: heads.kv as u32,
            head_dim: heads.dim as u32,
            capacity: capacity as u32,
            scale: heads.scale,
            window: heads.window_word(),
            soft_cap: heads.soft_cap_word(),
            mask: seen.mask(),
        };
        device.call(
            &KERNEL,
            Variant::typed(query.dtype(), output).with_subgroups(device.capabilities().subgroups),
            &params,
            &[query, key, value, seen.ends, seen.places(), &result],
        )?;
    }
    Ok((result, None))
}

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    let pairs = [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::F16, DType::F32)];
    for (activation, output) in pairs {
        for subgroups in [false, true] {
            variants.push(Variant::typed(activation, output).with_subgroups(subgroups));
        }
    }
    variants
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let held = f64::from(p.capacity) / f64::from(1 + p.mask.causal);
    let keys = f64::from(p.tokens) * f64::min(held, f64::from(p.window));
    let operations = 4.0 * keys * f64::from(p.heads) * f64::from(p.head_dim);
    Cost::new(operations, operations / 8.0)
}

/// One head of one token: where it is and what it sees.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) query: usize,
    pub(super) cache: usize,
    pub(super) pitch: usize,
    /// The keys that it sees.
    pub(super) keys: Range<usize>,
    head: usize,
    /// What is said of its sequence, and its number there.
    token: (u32, usize),
}

impl Place {
    /// The bias of the score of a key, of the words that the kernel reads.
    fn bias(&self, p: &Params, words: &[u32], key: usize) -> f32 {
        p.mask.bias((words, p.sequences), self.head, self.token, key)
    }
}

pub(super) fn place(p: &Params, past: &[u32], index: usize) -> Place {
    let (heads, kv_heads, head_dim) = (p.heads as usize, p.kv_heads as usize, p.head_dim as usize);
    let token = p.token_start as usize + index / heads;
    let head = index % heads;
    let (sequence, order) =
        (token / p.tokens_per_sequence as usize, token % p.tokens_per_sequence as usize);
    let pitch = kv_heads * head_dim;
    let end = past[sequence];
    Place {
        query: (token * heads + head) * head_dim,
        cache: sequence * p.capacity as usize * pitch + head / (heads / kv_heads) * head_dim,
        pitch,
        keys: p.mask.keys(end, order, p.window),
        head,
        token: (end, order),
    }
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let mut expected = Expected::exact(args.tensors[5].to_f64());
    expect(args, &[args.parameters()], &mut expected);
    vec![expected]
}

/// Writes what windows of tokens must give.
pub(super) fn expect(args: &Args<'_>, windows: &[Params], expected: &mut Expected) {
    let (query, key, value) =
        (args.tensors[0].to_f64(), args.tensors[1].to_f64(), args.tensors[2].to_f64());
    let (past, words) = (args.tensors[3].u32s(), args.tensors[4].u32s());
    let heads = windows.iter().flat_map(|p| {
        let heads = p.tokens as usize * p.heads as usize;
        (0..heads).map(move |index| (p, index))
    });
    let lines: Vec<(usize, Vec<(f64, f64)>)> = heads
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|(p, index)| {
            let place = place(p, past, index);
            let line = head_reference(&place, p, [&query, &key, &value], words, args.variant);
            (place.query, line)
        })
        .collect();
    for (start, line) in lines {
        expected.put(start, line);
    }
}

/// The weighted sum of one head, with bounds.
///
/// An error d in a score changes its weight by a factor exp(d), and exp itself is off by (3 + 2 |x|) ulp; the weights'
/// errors reach the result through sum(weight * |value|), once in the sum and once in the total that divides it. Matrix units
/// take the weights in f16.
fn head_reference(
    place: &Place,
    p: &Params,
    [query, key, value]: [&[f64]; 3],
    words: &[u32],
    variant: &Variant,
) -> Vec<(f64, f64)> {
    let (head_dim, scale) = (p.head_dim as usize, f64::from(p.scale));
    let matrix_units = on_matrix_units(variant);
    let slack = sum_slack(matrix_units);
    let mut scores = Vec::with_capacity(place.keys.len());
    let mut score_error = 0.0f64;
    for index in place.keys.clone() {
        let (mut score, mut magnitude) = (0.0, 0.0);
        for column in 0..head_dim {
            let product = query[place.query + column]
                * scale
                * key[place.cache + index * place.pitch + column];
            score += product;
            magnitude += product.abs();
        }
        let bias = f64::from(place.bias(p, words, index));
        let (score, magnitude) = (score + bias, magnitude + bias.abs());
        let terms = head_dim + 2 + usize::from(p.mask.distances > 0);
        let error = slack * gamma(terms) * magnitude;
        let (score, error) = score_reference(score, error, p.soft_cap);
        scores.push(score);
        score_error = score_error.max(error);
    }
    let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - maximum).exp()).collect();
    let total: f64 = weights.iter().sum();
    let range = scores.iter().map(|score| maximum - score).fold(0.0, f64::max).min(100.0);
    let relative =
        2.0 * (2.0 * score_error + (8.0 + 6.0 * range) * U) + 2.0 * gamma(place.keys.len() + 8);
    (0..head_dim)
        .map(|column| {
            let (mut sum, mut magnitude, mut rounded) = (0.0, 0.0, 0.0);
            for (index, weight) in place.keys.clone().zip(&weights) {
                let value = value[place.cache + index * place.pitch + column];
                let product = weight / total * value;
                sum += product;
                magnitude += product.abs();
                if matrix_units {
                    rounded += half_factor(*weight) / total * value.abs();
                }
            }
            (sum, relative * magnitude + rounded + storing(variant.output, sum))
        })
        .collect()
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let head_dim = p.head_dim as usize;
    let (query, key, value) =
        (args.tensors[0].to_f32(), args.tensors[1].to_f32(), args.tensors[2].to_f32());
    let (past, words) = (args.tensors[3].u32s(), args.tensors[4].u32s());
    let arch = Arch::new();
    let lines: Vec<(usize, Vec<f32>)> = (0..p.tokens as usize * p.heads as usize)
        .into_par_iter()
        .map(|index| {
            let place = place(&p, past, index);
            let head = &query[place.query..place.query + head_dim];
            let start = place.query;
            let (p, key, value) = (&p, &key, &value);
            let sums = arch.dispatch(OneHead { p, head, key, value, words, place });
            (start, sums)
        })
        .collect();
    for (start, line) in lines {
        outputs.store(0, start, &line);
    }
}

/// Attention of one head of one token, in the vectors that the processor has.
struct OneHead<'a> {
    p: &'a Params,
    head: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    words: &'a [u32],
    place: Place,
}

impl WithSimd for OneHead<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { p, head, key, value, words, place } = self;
        let row = |index: usize| {
            let start = place.cache + index * place.pitch;
            start..start + head.len()
        };
        let (head_vectors, head_rest) = S::as_simd_f32s(head);
        let mut scores = Vec::with_capacity(place.keys.len());
        for index in place.keys.clone() {
            let (key_vectors, key_rest) = S::as_simd_f32s(&key[row(index)]);
            let mut sums = [simd.splat_f32s(0.0); 2];
            for (lane, (q, k)) in head_vectors.iter().zip(key_vectors).enumerate() {
                sums[lane % 2] = simd.mul_add_e_f32s(*q, *k, sums[lane % 2]);
            }
            let rest: f32 = head_rest.iter().zip(key_rest).map(|(q, k)| q * k).sum();
            let product = simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1])) + rest;
            scores.push(score(product * p.scale + place.bias(p, words, index), p.soft_cap));
        }
        let maximum = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        scores.iter_mut().for_each(|score| *score = (*score - maximum).exp());
        let total: f32 = scores.iter().sum();
        let mut mixed = vec![0.0; head.len()];
        let (vectors, rest) = S::as_mut_simd_f32s(&mut mixed);
        for (index, weight) in place.keys.clone().zip(&scores) {
            let (value_vectors, value_rest) = S::as_simd_f32s(&value[row(index)]);
            let factor = simd.splat_f32s(*weight);
            for (sum, v) in vectors.iter_mut().zip(value_vectors) {
                *sum = simd.mul_add_e_f32s(factor, *v, *sum);
            }
            rest.iter_mut().zip(value_rest).for_each(|(sum, v)| *sum += weight * v);
        }
        mixed.iter_mut().for_each(|sum| *sum /= total);
        mixed
    }
}

/// What tokens of a case see.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// So many keys at most of each sequence, one less of each after the first; 0: those up to themselves.
    pub(super) keys: usize,
    /// The first place that anybody looks at.
    pub(super) first: usize,
    /// Buckets of distances; 0: no bias.
    pub(super) buckets: usize,
}

impl Look {
    /// What causal attention sees.
    pub(super) const CAUSAL: Self = Self { keys: 0, first: 0, buckets: 0 };

    pub(super) const fn all(keys: usize) -> Self {
        Self { keys, ..Self::CAUSAL }
    }

    pub(super) const fn from(self, first: usize) -> Self {
        Self { first, ..self }
    }

    pub(super) const fn biased(self, buckets: usize) -> Self {
        Self { buckets, ..self }
    }

    /// A random one, of so many keys.
    pub(super) fn random(sizes: &Sizes, keys: usize) -> Self {
        // What the scores' numbers leave of the last one.
        let kind = sizes.between(7, 0, 15) % 4;
        let all = [0, keys][kind / 2];
        Self { keys: all, ..Self::CAUSAL }.biased([0, 2 + keys % 14][kind % 2])
    }

    pub(super) fn label(&self) -> String {
        let Self { keys, first, buckets } = *self;
        let told = [(",keys=", keys), (",first=", first), (",buckets=", buckets)];
        let told = told.iter().filter(|(_, value)| *value > 0);
        told.map(|(name, value)| format!("{name}{value}")).collect()
    }

    pub(super) fn causal(&self) -> bool {
        self.keys == 0
    }

    /// The word of a sequence that held so many tokens behind the first place looked at.
    pub(super) fn end(&self, past: u32, sequence: usize) -> u32 {
        match self.causal() {
            true => self.first as u32 + past,
            false => (self.first + self.keys.saturating_sub(sequence).max(1)) as u32,
        }
    }

    fn reach(&self) -> usize {
        2 * self.buckets
    }

    /// Buckets of distances, most of several distances, and one of none.
    pub(super) fn bucket(&self) -> Vec<u32> {
        let all = 2 * self.reach() + 1;
        let used = self.buckets.saturating_sub(1).max(1);
        (0..all).map(|step| (step * used / all) as u32).collect()
    }

    pub(super) fn mask(&self) -> Mask {
        let distances = if self.buckets > 0 { 2 * self.reach() + 1 } else { 0 };
        Mask {
            causal: u32::from(self.causal()),
            first: self.first as u32,
            distances: distances as u32,
            ..Mask::CAUSAL
        }
    }

    /// The words of sequences, and a random bias of so many heads behind them: a large one may be more than exp takes.
    pub(super) fn places(&self, ends: &[u32], heads: usize, note: &str) -> Vec<u32> {
        if self.buckets == 0 {
            return ends.to_vec();
        }
        let scale = if note == ",large" { 120.0 } else { 2.0 };
        let table = Random::new(77).values(self.buckets * heads, scale);
        words(ends, &self.bucket(), (&table, heads))
    }
}

pub(super) fn case(
    sequences: usize,
    each: usize,
    heads: Attention,
    past: u32,
    note: &'static str,
) -> Case {
    looking(sequences, each, heads, (past, Look::CAUSAL), note)
}

pub(super) fn looking(
    sequences: usize,
    each: usize,
    heads: Attention,
    (past, look): (u32, Look),
    note: &'static str,
) -> Case {
    let Attention { query, kv, dim, .. } = heads;
    let scores = heads.score_label() + &look.label();
    let label = format!(
        "sequences={sequences},tokens={each},heads={query}/{kv},head_dim={dim},past={past}{scores}{note}"
    );
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(6);
        let tokens = sequences * each;
        // Each sequence holds a different number of tokens already; of many, each none.
        let more = if note == ",many" { 0 } else { sequences };
        let ends = |s: usize| look.end(past + s.min(more) as u32, s);
        let past: Vec<u32> = (0..sequences).map(ends).collect();
        // Behind the last key that anybody sees.
        let written = |end: u32| end as usize + if look.causal() { each } else { 0 };
        let capacity = past.iter().map(|end| written(*end)).max().unwrap_or(0) + 3;
        let skip = usize::from(note == ",part");
        let params = Params {
            tokens: (tokens - 2 * skip) as u32,
            token_start: skip as u32,
            tokens_per_sequence: each as u32,
            sequences: sequences as u32,
            heads: query as u32,
            kv_heads: kv as u32,
            head_dim: dim as u32,
            capacity: capacity as u32,
            scale: heads.scale,
            window: heads.window_word(),
            soft_cap: heads.soft_cap_word(),
            mask: look.mask(),
        };
        let (width, pitch) = (query * dim, kv * dim);
        let rows = sequences * capacity;
        let mut q = random.values(tokens * width, 3.0);
        if note == ",large" {
            q.iter_mut().for_each(|v| *v *= 60.0);
        }
        let dtype = variant.activation;
        // Rows of the cache that no token has written, or nobody looks at, may hold anything.
        let mut cache = || {
            let mut values = random.values(rows * pitch, 1.0);
            for (values, end) in values.chunks_exact_mut(capacity * pitch).zip(&past) {
                values[..look.first * pitch].fill(f32::NAN);
                values[written(*end) * pitch..].fill(f32::NAN);
            }
            values
        };
        let (key, mut value) = (cache(), cache());
        if note == ",nan value" {
            // The tokens before it do not see it.
            value[(past[0] as usize + each / 2) * pitch] = f32::NAN;
        }
        let cache = |values: &[f32]| HostTensor::from_f32(dtype, &[rows, pitch], values);
        let places = look.places(&past, query, note);
        params.case(vec![
            HostTensor::from_f32(dtype, &[tokens, width], &q),
            cache(&key),
            cache(&value),
            HostTensor::from_u32(&[sequences], &past),
            HostTensor::from_u32(&[places.len()], &places),
            HostTensor::from_f32(
                variant.output,
                &[tokens, width],
                &random.values(tokens * width, 1.0),
            ),
        ])
    })
}

/// A layer of random scores: every other with a window, every other with a soft cap.
pub(super) fn random_scores(sizes: &Sizes, attention: Attention) -> Attention {
    Attention {
        window: [None, Some(sizes.between(6, 1, 80))][sizes.between(7, 0, 3) % 2],
        soft_cap: [None, Some(2.0)][sizes.between(7, 0, 3) / 2],
        ..attention
    }
}

/// The same, every other over all keys, every other with a bias.
pub(super) fn random_layer(sizes: &Sizes, attention: Attention) -> (Attention, Look) {
    let look = Look::random(sizes, sizes.between(6, 1, 80));
    let heads = random_scores(sizes, attention);
    let window = heads.window.filter(|_| look.causal());
    (Attention { window, ..heads }, look)
}

fn random(sizes: &Sizes) -> Case {
    let kv = sizes.between(2, 1, 3);
    let heads = Attention::new(kv * sizes.between(3, 1, 4), kv, 2 * sizes.between(4, 1, 64));
    let (sequences, each) = (sizes.between(0, 1, 3), sizes.between(1, 1, 40));
    let (heads, look) = random_layer(sizes, heads);
    looking(sequences, each, heads, (sizes.between(5, 0, 200) as u32, look), "")
}

fn cases() -> Vec<Case> {
    let heads = Attention::new;
    vec![
        case(2, 5, heads(4, 2, 16), 0, ""),
        case(2, 1, heads(9, 3, 64), 130, ""),
        case(1, 70, heads(3, 1, 10), 0, ""),
        case(1, 1, heads(1, 1, 2), 0, ""),
        case(1, 3, heads(2, 2, 256), 61, ""),
        case(1, 9, heads(2, 1, 8), 3, ",part"),
        case(1, 4, heads(2, 1, 32), 60, ",large"),
        case(1, 4, heads(2, 1, 32), 60, "").with(Poison::Zeros),
        case(1, 2, heads(2, 1, 8), 3, "").with(Poison::NaN),
        case(2, 5, heads(2, 1, 8), 3, ",nan value"),
        // Windows: of one key, inside the new tokens, across what is past, longer than all.
        case(2, 9, heads(2, 1, 8).with_window(1), 3, ""),
        case(1, 90, heads(4, 2, 16).with_window(17), 0, ""),
        case(2, 3, heads(4, 1, 256).with_window(66), 130, ""),
        case(1, 5, heads(2, 1, 8).with_window(64), 3, ""),
        case(1, 9, heads(2, 1, 8).with_window(4), 3, ",nan value"),
        case(1, 20, heads(4, 2, 16).with_soft_cap(2.0), 70, ""),
        case(1, 4, heads(2, 1, 32).with_soft_cap(50.0), 60, ",large"),
        case(1, 2, heads(2, 1, 8).with_soft_cap(50.0), 3, "").with(Poison::NaN),
        case(2, 20, heads(4, 1, 32).with_window(9).with_soft_cap(1.0), 70, ""),
        // All keys of other texts, of other numbers in each; biases, also beside caps and behind places that nobody looks at.
        looking(3, 1, heads(2, 2, 64), (0, Look::all(130)), ""),
        looking(2, 7, heads(4, 2, 12), (0, Look::all(66)), ""),
        looking(2, 5, heads(3, 3, 16), (0, Look::all(5).biased(8)), ""),
        looking(1, 40, heads(2, 1, 10), (0, Look::all(40).biased(32)), ""),
        looking(1, 70, heads(2, 2, 10), (0, Look::CAUSAL.biased(32)), ""),
        looking(2, 3, heads(2, 2, 256), (6, Look::CAUSAL.from(7).biased(5)), ""),
        looking(3, 9, heads(2, 1, 6), (0, Look::CAUSAL.from(4).biased(6)), ",part"),
        looking(1, 6, heads(2, 2, 8), (3, Look::CAUSAL.biased(4)), "").with(Poison::NaN),
        looking(2, 4, heads(4, 2, 32), (0, Look::all(9).biased(4)), ",large"),
        looking(1, 20, heads(4, 2, 16).with_soft_cap(2.0), (70, Look::CAUSAL.biased(6)), ""),
        case(4099, 1, heads(1, 1, 2), 0, ",many"),
        case(4, 512, heads(9, 3, 64), 0, "").bench(),
        case(1, 1, heads(32, 8, 128), 2047, "").bench(),
        // Beside `attention/split`, which takes these.
        case(1, 1, heads(32, 8, 64), 4095, "").bench(),
        case(1, 1, heads(32, 4, 64), 4095, "").bench(),
        case(1, 1, heads(32, 8, 128), 4095, "").bench(),
        case(1, 1, heads(32, 4, 128), 4095, "").bench(),
        case(1, 1, heads(4, 1, 256).with_window(512), 2047, "").bench(),
    ]
}
