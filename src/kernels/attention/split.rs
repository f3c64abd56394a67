//! `attention/split`: what [`attention/causal`](super::causal) computes, for few tokens over a long cache, of any type: the keys
//! that a token sees are cut into equal parts, each of which is a workgroup's (Flash-Decoding, Dao et al. 2023), and
//! [`attention/merge`](super::merge) puts the parts together. Of a part: sum(exp(s - m) v), its highest score m, and
//! sum(exp(s - m)).
//!
//! Query heads that share keys are one workgroup's, so the cache is read once, whatever its depth: a token reads the bytes of
//! the keys and values that it sees, and for every part writes and reads back head_dim + 2 numbers a query head. The number
//! of parts does not depend on how many keys a cache holds, only on a bound of it; how long a part is does.

use std::ops::Range;

use super::causal::{self, Place, place, random_scores};
use super::merge::NOTHING;
use super::{Attention, Mask, score, score_reference};
use crate::kernels::kv::{self, Cached};
use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::kernels::weights;

params! {
    struct Params {
        tokens: u32,
        token_start: u32,
        tokens_per_sequence: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        capacity: u32,
        scale: f32,
        /// Keys that a token sees, itself among them.
        window: u32,
        /// 0: none.
        soft_cap: f32,
        /// Parts that a token's keys are cut into.
        splits: u32,
        /// Neighbouring lanes that share a key: a power of two.
        sharers: u32,
        layout: Layout,
    }
}

/// Parts at most.
pub(in crate::kernels) const MAX_SPLITS: usize = 128;

/// Keys that are worth a part.
const LEAST: usize = 64;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/split",
    source: include_str!("../../../shaders/attention/split.wgsl"),
    bindings: &[
        binding("query", Access::Read, Element::Activation),
        binding("key", Access::Read, Element::Is(DType::U32)),
        binding("key_scales", Access::Read, Element::Is(DType::U32)),
        binding("value", Access::Read, Element::Is(DType::U32)),
        binding("value_scales", Access::Read, Element::Is(DType::U32)),
        binding("past", Access::Read, Element::Is(DType::U32)),
        binding("parts", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    imports: kv::fragment,
    variants,
    groups: |args| {
        let p: Params = args.parameters();
        let shares = (p.heads / p.kv_heads).div_ceil(args.variant.constant("HEADS"));
        fold(p.tokens as usize * (p.kv_heads * shares * p.splits) as usize)
    },
    cost,
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Query heads of a workgroup at most, the keys that a lane takes at once, and their products.
pub(super) const TILES: [&[(&str, u32)]; 3] = [
    &[("HEADS", 1), ("ROWS", 4), ("SUMS", 4)],
    &[("HEADS", 4), ("ROWS", 4), ("SUMS", 16)],
    &[("HEADS", 8), ("ROWS", 2), ("SUMS", 16)],
];

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for variant in kv::decoding_variants() {
        for activation in [DType::F32, DType::F16] {
            for constants in TILES {
                for subgroups in [false, true] {
                    variants.push(Variant { activation, constants, subgroups, ..variant.clone() });
                }
            }
        }
    }
    variants
}

/// Whether it takes heads of so many columns: eights of them.
pub(super) fn takes(heads: &Attention) -> bool {
    heads.dim.is_multiple_of(8)
}

/// Whether it is worth its second pass where some other kernel reads the cache, too.
pub(super) fn pays(heads: &Attention, bound: usize) -> bool {
    // The other kernel takes 64 keys at a time, each a lane's whole row: 25 us every time on an H100.
    heads.keys(bound) > LEAST
}

/// Parts for a pass over so many tokens, none of which sees more than `bound` keys, by workgroups of `at_once` query heads, of
/// which there should be `enough`.
fn splits(
    heads: &Attention,
    (tokens, bound): (usize, usize),
    at_once: usize,
    enough: usize,
) -> usize {
    let workgroups = tokens * heads.kv * (heads.query / heads.kv).div_ceil(at_once);
    let most = heads.keys(bound).div_ceil(LEAST).clamp(1, MAX_SPLITS);
    enough.div_ceil(workgroups).min(most)
}

/// The tile for such heads, and the parts that the keys are cut into on a device.
pub(super) fn tile_and_splits(
    device: &Device,
    heads: &Attention,
    (tokens, bound): (usize, usize),
) -> (&'static [(&'static str, u32)], usize) {
    let each = heads.query / heads.kv;
    let fits = |tile: &&&[(&str, u32)]| tile[0].1 as usize >= each;
    let constants = *TILES.iter().find(fits).unwrap_or(&TILES[TILES.len() - 1]);
    let of_gpu = device.gpu().map(|gpu| {
        let enough = gpu.adapter().enough_workgroups();
        splits(heads, (tokens, bound), constants[0].1 as usize, enough)
    });
    (constants, of_gpu.unwrap_or(1))
}

/// The parts of attention, f32 (tokens, heads, splits, head_dim + 2), of `query`, (tokens, heads, head_dim), over caches that hold
/// the new tokens already. `past`: tokens each sequence held before them. No token sees more than `bound` keys.
pub(super) fn split(
    device: &Device,
    query: &Tensor,
    (key, value): (&Cached, &Cached),
    past: &Tensor,
    heads: Attention,
    bound: usize,
) -> Result<Tensor> {
    let tokens = query.shape()[0];
    let (constants, splits) = tile_and_splits(device, &heads, (tokens, bound));
    let variant = Variant {
        activation: query.dtype(),
        constants,
        subgroups: device.capabilities().subgroups,
        ..weights::variant(key.weight())
    };
    let shape = [tokens, heads.query, splits, heads.dim + 2];
    let parts = device.allocate(DType::F32, &shape, "parts of attention")?;
    let operations = 4.0 * (heads.query * heads.dim * heads.keys(bound)) as f64;
    let step = ((device.call_limit().operations / operations) as usize).max(1);
    let ((keys, key_scales), (values, value_scales)) = (key.words(), value.words());
    for start in (0..tokens).step_by(step) {
        let count = step.min(tokens - start);
        let params = Params {
            tokens: count as u32,
            token_start: start as u32,
            tokens_per_sequence: (tokens / past.len()) as u32,
            heads: heads.query as u32,
            kv_heads: heads.kv as u32,
            head_dim: heads.dim as u32,
            capacity: key.capacity() as u32,
            scale: heads.scale,
            window: heads.window_word(),
            soft_cap: heads.soft_cap_word(),
            splits: splits as u32,
            sharers: sharers(heads.dim),
            layout: key.layout(),
        };
        let tensors = [query, &keys, key_scales, &values, value_scales, past, &parts];
        device.call(&KERNEL, variant.clone(), &params, &tensors)?;
    }
    Ok(parts)
}

/// Lanes that share a key of so many columns, eight of which each takes.
pub(super) fn sharers(head_dim: usize) -> u32 {
    (head_dim / 8).next_power_of_two() as u32
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let keys = f64::from(p.tokens) * f64::from(p.capacity.min(p.window));
    let results = f64::from(p.tokens * p.heads * p.splits) * f64::from(p.head_dim + 2);
    let shares = (p.heads / p.kv_heads).div_ceil(args.variant.constant("HEADS"));
    let row = 8.0 * f64::from(p.layout.code_words + p.layout.scale_words);
    Cost::new(
        4.0 * keys * f64::from(p.heads) * f64::from(p.head_dim),
        f64::from(shares) * keys * row + 4.0 * results,
    )
}

impl Params {
    /// The call of `attention/causal`.
    pub(super) fn whole(&self) -> causal::Params {
        causal::Params {
            tokens: self.tokens,
            token_start: self.token_start,
            tokens_per_sequence: self.tokens_per_sequence,
            sequences: 0,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            capacity: self.capacity,
            scale: self.scale,
            window: self.window,
            soft_cap: self.soft_cap,
            mask: Mask::CAUSAL,
        }
    }
}

/// Keys and values that the sequences of a call hold, its new tokens among them: of each sequence its rows in f32.
struct Held {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Held {
    fn new(args: &Args<'_>) -> Self {
        let p: Params = args.parameters();
        let width = p.kv_heads as usize * p.head_dim as usize;
        let past = args.tensors[5].u32s();
        let decode = |bindings: (usize, usize)| {
            let sequences = past.par_iter().enumerate();
            let rows = |(sequence, past): (usize, &u32)| {
                let first = sequence * p.capacity as usize;
                let rows = first..first + (*past + p.tokens_per_sequence) as usize;
                kv::decode_rows(args, bindings, (p.layout, width), rows)
            };
            sequences.map(rows).collect()
        };
        Self { keys: decode((1, 2)), values: decode((3, 4)) }
    }
}

/// Keys cut into parts of one length; the last ones may be shorter, or empty.
pub(super) fn cut(keys: &Range<usize>, splits: usize) -> impl Iterator<Item = Range<usize>> {
    let (each, Range { start, end }) = (keys.len().div_ceil(splits), keys.clone());
    (0..splits).map(move |split| {
        let begin = (start + split * each).min(end);
        begin..(begin + each).min(end)
    })
}

/// A part of a token's head: where its numbers stand, where its token is, its sequence, and its keys.
fn pieces(args: &Args<'_>) -> Vec<(usize, Place, usize, Range<usize>)> {
    let p: Params = args.parameters();
    let (past, splits) = (args.tensors[5].u32s(), p.splits as usize);
    let rows = p.tokens as usize * p.heads as usize;
    let mut pieces = Vec::with_capacity(rows * splits);
    for index in 0..rows {
        let row = p.token_start as usize * p.heads as usize + index;
        let sequence = row / p.heads as usize / p.tokens_per_sequence as usize;
        let mut place = place(&p.whole(), past, index);
        place.cache -= sequence * p.capacity as usize * place.pitch;
        for (split, range) in cut(&place.keys, splits).enumerate() {
            let at = (row * splits + split) * (p.head_dim as usize + 2);
            pieces.push((at, place.clone(), sequence, range));
        }
    }
    pieces
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (held, query) = (Held::new(args), args.tensors[0].to_f64());
    let mut expected = Expected::exact(args.tensors[6].to_f64());
    let lines: Vec<(usize, Vec<(f64, f64)>)> = pieces(args)
        .into_par_iter()
        .map(|(at, place, sequence, keys)| {
            let (key, value) = (&held.keys[sequence], &held.values[sequence]);
            let query = |index: usize| (query[index], 0.0);
            let key = |index: usize| (f64::from(key[index]), 0.0);
            let value = |index: usize| f64::from(value[index]);
            (at, piece_reference(&p, (query, key, value), &place, keys))
        })
        .collect();
    for (at, line) in lines {
        expected.put(at, line);
    }
    vec![expected]
}

/// What a part must give, with bounds: as those of a whole head (see `attention/causal`), but that nothing is divided. Queries and keys
/// are known to within a bound each.
pub(super) fn piece_reference(
    p: &Params,
    (query, key, value): (
        impl Fn(usize) -> (f64, f64),
        impl Fn(usize) -> (f64, f64),
        impl Fn(usize) -> f64,
    ),
    place: &Place,
    keys: Range<usize>,
) -> Vec<(f64, f64)> {
    let (head_dim, scale) = (p.head_dim as usize, f64::from(p.scale));
    let mut scores = Vec::with_capacity(keys.len());
    let mut score_error = 0.0f64;
    for index in keys.clone() {
        let (mut sum, mut magnitude, mut known) = (0.0, 0.0, 0.0);
        for column in 0..head_dim {
            let (q, q_bound) = query(place.query + column);
            let (k, k_bound) = key(place.cache + index * place.pitch + column);
            let product = q * scale * k;
            sum += product;
            magnitude += product.abs();
            known += scale * (q_bound * (k.abs() + k_bound) + q.abs() * k_bound);
        }
        let error = gamma(head_dim + 2) * magnitude + known;
        let (score, error) = score_reference(sum, error, p.soft_cap);
        scores.push(score);
        score_error = score_error.max(error);
    }
    let highest = scores.iter().copied().fold(f64::from(NOTHING), f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
    let range = scores.iter().map(|score| highest - score).fold(0.0, f64::max).min(100.0);
    let relative =
        2.0 * (2.0 * score_error + (8.0 + 6.0 * range) * U) + 2.0 * gamma(keys.len() + 8);
    // A weight below the normal range may be flushed to zero.
    let lost = DType::F32.underflow();
    let mut line: Vec<(f64, f64)> = (0..head_dim)
        .map(|column| {
            let (mut sum, mut bound) = (0.0, 0.0);
            for (index, weight) in keys.clone().zip(&weights) {
                let value = value(place.cache + index * place.pitch + column);
                sum += weight * value;
                bound += (relative * weight + lost) * value.abs() + lost;
            }
            (sum, bound)
        })
        .collect();
    let total: f64 = weights.iter().sum();
    let bound = relative * total + lost * keys.len() as f64;
    line.extend([(highest, score_error), (total, bound)]);
    line
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let head_dim = p.head_dim as usize;
    let (held, query) = (Held::new(args), args.tensors[0].to_f32());
    let lines: Vec<(usize, Vec<f32>)> = pieces(args)
        .into_par_iter()
        .map(|(at, place, sequence, keys)| {
            let (key, value) = (&held.keys[sequence], &held.values[sequence]);
            let head = &query[place.query..place.query + head_dim];
            let row = |index: usize| place.cache + index * place.pitch;
            let scores = keys.clone().map(|index| {
                let products = head.iter().zip(&key[row(index)..]).map(|(q, k)| q * k);
                score(products.sum::<f32>() * p.scale, p.soft_cap)
            });
            let scores: Vec<f32> = scores.collect();
            let highest = scores.iter().copied().fold(NOTHING, f32::max);
            let (mut line, mut total) = (vec![0.0f32; head_dim], 0.0f32);
            for (index, score) in keys.zip(scores) {
                let weight = (score - highest).exp();
                total += weight;
                let values = &value[row(index)..];
                line.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
            }
            line.extend([highest, total]);
            (at, line)
        })
        .collect();
    for (at, line) in lines {
        outputs.store(0, at, &line);
    }
}

/// `each` tokens of `sequences`, which hold `past` tokens already, each one more than the one before.
fn case(
    (sequences, each): (usize, usize),
    heads: Attention,
    past: usize,
    splits: usize,
    note: &'static str,
) -> Case {
    let Attention { query, kv, dim, .. } = heads;
    let scores = heads.score_label();
    let label = format!(
        "sequences={sequences},tokens={each},heads={query}/{kv},head_dim={dim},past={past},splits={splits}{scores}{note}"
    );
    let case = Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(34);
        let (tokens, width) = (sequences * each, kv * dim);
        let capacity = past + each + sequences + 2;
        let past: Vec<u32> = (0..sequences).map(|sequence| (past + sequence) as u32).collect();
        let written = |row: usize| row % capacity < past[row / capacity] as usize + each;
        let sizes = (sequences * capacity, width, dim);
        let (layout, [keys, key_scales]) = kv::decode::words(&mut random, variant, sizes, written);
        let (_, [values, value_scales]) = kv::decode::words(&mut random, variant, sizes, written);
        let skip = usize::from(note == ",part");
        let params = Params {
            tokens: (tokens - 2 * skip) as u32,
            token_start: skip as u32,
            tokens_per_sequence: each as u32,
            heads: query as u32,
            kv_heads: kv as u32,
            head_dim: dim as u32,
            capacity: capacity as u32,
            scale: heads.scale,
            window: heads.window_word(),
            soft_cap: heads.soft_cap_word(),
            splits: splits as u32,
            sharers: sharers(dim),
            layout,
        };
        let mut q = random.values(tokens * query * dim, 3.0);
        if note == ",large" {
            q.iter_mut().for_each(|value| *value *= 30.0);
        }
        let parts = tokens * query * splits * (dim + 2);
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[tokens, query * dim], &q),
            keys,
            key_scales,
            values,
            value_scales,
            HostTensor::from_u32(&[sequences], &past),
            HostTensor::from_f32(
                DType::F32,
                &[tokens, query, splits, dim + 2],
                &random.values(parts, 1.0),
            ),
        ])
    });
    // Groups of a cache with scales have 16 columns or more.
    if dim.is_multiple_of(16) { case } else { case.only(is_plain) }
}

fn is_plain(variant: &Variant) -> bool {
    variant.weight.is_some_and(|weight| weight.is_plain())
}

fn random(sizes: &Sizes) -> Case {
    let kv = sizes.between(2, 1, 3);
    let heads = Attention::new(kv * sizes.between(3, 1, 9), kv, 8 * sizes.between(4, 1, 32));
    let heads = random_scores(sizes, heads);
    let tokens = (sizes.between(0, 1, 3), 1 + sizes.between(1, 0, 8));
    // As many parts as another number has: sixteen at most.
    let splits = 1 + sizes.between(3, 0, 15);
    case(tokens, heads, sizes.between(5, 0, 200), splits, "")
}

/// The variants that passes over groups of so many query heads take.
pub(super) fn in_use(heads: u32) -> fn(&Variant) -> bool {
    match heads {
        1 => |variant| variant.constant("HEADS") == 1,
        4 => |variant| variant.constant("HEADS") == 4,
        _ => |variant| variant.constant("HEADS") == 8,
    }
}

fn cases() -> Vec<Case> {
    // Workgroups of a large device.
    const LARGE: usize = 512;
    let heads = Attention::new;
    let mut cases = vec![
        case((2, 3), heads(4, 2, 16), 0, 1, ""),
        case((2, 1), heads(9, 3, 64), 130, 3, ""),
        case((1, 2), heads(3, 1, 80), 40, 4, ""),
        case((1, 1), heads(1, 1, 8), 0, 1, ""),
        // Several tiles of keys in a part.
        case((1, 2), heads(4, 1, 128), 150, 2, ""),
        case((2, 1), heads(8, 1, 64), 260, 2, ",large"),
        // More parts than keys.
        case((1, 3), heads(2, 2, 256), 4, 9, ""),
        case((1, 4), heads(11, 1, 32), 70, 2, ",part"),
        case((1, 2), heads(8, 1, 32), 60, 2, ",large"),
        case((3, 2), heads(8, 2, 128), 33, 2, ""),
        case((1, 2), heads(4, 1, 32), 20, 2, "").with(Poison::Zeros),
        case((1, 2), heads(2, 1, 32), 20, 2, "").with(Poison::NaN),
        // Windows: of one key, within what is past, longer than all.
        case((2, 3), heads(2, 1, 16).with_window(1), 3, 2, ""),
        case((1, 3), heads(4, 1, 64).with_window(66), 130, 3, ""),
        case((1, 5), heads(2, 1, 24).with_window(64), 3, 2, ""),
        case((1, 2), heads(4, 2, 16).with_soft_cap(2.0), 70, 2, ""),
        case((2, 2), heads(4, 1, 32).with_window(9).with_soft_cap(1.0), 70, 2, ""),
    ];
    for dim in [64, 128] {
        for kv in [4, 8] {
            let heads = heads(32, kv, dim);
            let at_once = heads.query / heads.kv;
            let splits = splits(&heads, (1, 4096), at_once, LARGE);
            let fits = in_use(at_once as u32);
            cases.push(case((1, 1), heads, 4095, splits, "").only(fits).bench());
        }
    }
    let own = heads(32, 32, 128);
    cases.push(
        case((1, 1), own, 4095, splits(&own, (1, 4096), 1, LARGE), "").only(in_use(1)).bench(),
    );
    cases
}
