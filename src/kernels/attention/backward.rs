//! The backward pass of attention over whole sequences, causal or of all keys, in three kernels that store no score matrix: the softmax's
//! weights are computed again from each token's log-sum-exp (Dao 2023, FlashAttention-2, arXiv 2307.08691, algorithm 2).
//! With p the weights, dp = d_out v and delta = d_out · out, the scores' gradient is p (dp - delta).
//!
//! Keys and values get theirs from a kernel of their own, owned by key and query head, so that nothing is added atomically and
//! every run gives the same bits; the heads of a group are then added up in their order. The scores are computed twice, and a
//! third time where the forward pass did not keep their log-sum-exps. So it is with the gradient of scores' bias by distance, where
//! it is asked for: each tile of tokens has a part of it.

use std::ops::Range;

use super::bias_grad::bias_grad;
use super::delta::delta;
use super::group_sum::group_sum;
use super::{
    Attention, Mask, Seen, coop, key_value_grad, key_value_grad_coop, lse_delta, on_matrix_units,
    query_grad, query_grad_coop, score_reference, sum_slack,
};
use crate::kernels::activation::soft_cap_slope_reference;
use crate::kernels::copy::pad::{cut, pad};
use crate::kernels::prelude::*;

/// Tokens, or places of a cache, that a workgroup owns, as in the shaders of register tiles.
pub(super) const OWNERS: usize = 32;

/// The same of any variant: on matrix units one says so.
pub(super) fn owners(variant: &Variant) -> usize {
    match variant.constant("OWNERS") {
        1 => OWNERS,
        owners => owners as usize,
    }
}

/// Heads of up to DIM columns, of which each invocation sums CHUNKS vectors of each of its rows.
const SHAPES: [&[(&str, u32)]; 3] =
    [&[("DIM", 64), ("CHUNKS", 1)], &[("DIM", 128), ("CHUNKS", 2)], &[("DIM", 256), ("CHUNKS", 4)]];

params! {
    /// Parameters of all that work by tiles: a tile is so many tokens of a sequence, or places of its cache, as a workgroup owns.
    /// Tiles of all sequences stand beside each other.
    struct Params {
        tiles: u32,
        tile_start: u32,
        sequences: u32,
        tokens_per_sequence: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        capacity: u32,
        scale: f32,
        window: u32,
        soft_cap: f32,
        mask: Mask,
    }
}

/// Gradients of attention, each of the shape of what it is the gradient of, f32.
#[derive(Debug)]
pub struct Gradients {
    /// Of queries.
    pub query: Tensor,
    /// Of keys.
    pub key: Tensor,
    /// Of values.
    pub value: Tensor,
    /// Of the table of a bias, where that is asked for.
    pub table: Option<Tensor>,
}

/// The gradients of attention over whole sequences that no cache continues.
///
/// `query`, the forward `result` and its gradient `grad` are (tokens, heads, head_dim), the tokens of a sequence in a row and
/// of each sequence as many; `key` and `value` are caches of (sequences, capacity, kv_heads, head_dim) that hold the tokens, or
/// what else they see, from their first place on: nobody is behind others, and the first place is 0. Gradients are zero behind
/// them. The result is f32, the others have one type, f32 or f16. `known`: the log-sum-exps that
/// [`forward`](super::causal::forward) gave, if it did; the products beside them are written there. `of_table`: whether the
/// gradient of the bias' table is asked for.
///
/// Where query heads share a key-value head, parts of keys' and values' gradients take f32 of `query`'s shape each meanwhile.
pub fn backward(
    device: &Device,
    query: &Tensor,
    (key, value): (&Tensor, &Tensor),
    (result, known): (&Tensor, Option<&Tensor>),
    grad: &Tensor,
    heads: Attention,
    (seen, of_table): (Seen<'_>, bool),
) -> Result<Gradients> {
    let five = [query, key, value, result, grad];
    let asked = (seen, of_table);
    // The shaders take whole vectors of four; what else there is goes through copies. The CPU takes everything.
    if device.gpu().is_none() || heads.dim.is_multiple_of(4) {
        return passes(device, five, known, heads, asked);
    }
    let mut padded = Vec::with_capacity(five.len());
    for tensor in five {
        padded.push(pad(device, tensor, heads.dim)?);
    }
    let wide = Attention { dim: heads.dim.next_multiple_of(4), ..heads };
    let five = std::array::from_fn(|index| &padded[index]);
    let of = passes(device, five, known, wide, asked)?;
    let narrow = |grad: &Tensor, shape: &[usize]| cut(device, grad, wide.dim, heads.dim, shape);
    Ok(Gradients {
        query: narrow(&of.query, query.shape())?,
        key: narrow(&of.key, key.shape())?,
        value: narrow(&of.value, value.shape())?,
        table: of.table,
    })
}

/// The kernels, each in as many calls as it takes, for query, key, value, result and gradient.
fn passes(
    device: &Device,
    [query, key, value, result, grad]: [&Tensor; 5],
    known: Option<&Tensor>,
    heads: Attention,
    (seen, of_table): (Seen<'_>, bool),
) -> Result<Gradients> {
    let dtype = query.dtype();
    let (sequences, width) = (seen.ends.len(), heads.query * heads.dim);
    let tokens = query.len() / width;
    let each = tokens / sequences;
    let capacity = key.len() / (sequences * heads.kv * heads.dim);
    assert_eq!(tokens, sequences * each, "sequences have one number of tokens");
    assert!(each <= capacity || !seen.causal, "the cache holds every token");
    assert!(seen.first == 0, "a backward pass looks at whole caches");
    let (wide, places) =
        (Variant { output: DType::F32, ..variant(dtype, heads.dim) }, seen.places());
    // By tokens or by places of a cache, of which a sequence has so many; so many rows pass by each.
    let run = |(kernel, variant): (&'static Kernel, &Variant),
               (length, rows): (usize, usize),
               operations: f64,
               tensors: &[&Tensor]| {
        let owners = owners(variant);
        let tiles = sequences * length.div_ceil(owners);
        // No row is paired with more than those, or a window beside a tile.
        let rows = rows.min(heads.keys(rows) + owners);
        let operations = operations * (owners * width * rows) as f64;
        let step = ((device.call_limit().operations / operations) as usize).max(1);
        for start in (0..tiles).step_by(step) {
            let params =
                Params::new(&heads, (sequences, each, capacity), (start, step.min(tiles - start)));
            let params = Params { mask: seen.mask(), ..params };
            device.call(kernel, variant.clone(), &params, tensors)?;
        }
        Ok(())
    };
    let by_token = (each, if seen.causal { each } else { capacity });
    let known = match known {
        Some(known) => {
            delta(device, result, grad, known, heads.dim)?;
            known.clone()
        }
        None => {
            let known = device.allocate(DType::F32, &[tokens, heads.query, 2], "log-sum-exps")?;
            let tensors = [query, key, result, grad, places, &known];
            run((&lse_delta::KERNEL, &wide), by_token, 2.0, &tensors)?;
            known
        }
    };
    let query_grad = device.allocate(DType::F32, query.shape(), "gradient of queries")?;
    let tensors = [query, key, value, grad, &known, places, &query_grad];
    let of_queries = coop::choose(device, &query_grad_coop::KERNEL, (dtype, DType::F32), heads.dim);
    let chosen = match &of_queries {
        Some(variant) => (&query_grad_coop::KERNEL, variant),
        None => (&query_grad::KERNEL, &wide),
    };
    run(chosen, by_token, 6.0, &tensors)?;
    let shape = [sequences * capacity, heads.query, heads.dim];
    let part = |what| device.allocate(DType::F32, &shape, what);
    let parts = [part("gradient of keys")?, part("gradient of values")?];
    let tensors = [query, key, value, grad, &known, places, &parts[0], &parts[1]];
    let of_keys =
        coop::choose(device, &key_value_grad_coop::KERNEL, (dtype, DType::F32), heads.dim);
    let chosen = match &of_keys {
        Some(variant) => (&key_value_grad_coop::KERNEL, variant),
        None => (&key_value_grad::KERNEL, &wide),
    };
    run(chosen, (capacity, each), 8.0, &tensors)?;
    let summed = |parts: &Tensor, like: &Tensor, what| {
        // Of a group of one head the only part is the sum.
        if heads.query == heads.kv {
            return Ok(parts.reshaped(like.shape()));
        }
        let sum = device.allocate(DType::F32, like.shape(), what)?;
        group_sum(device, parts, heads.dim, &sum)?;
        Ok(sum)
    };
    Ok(Gradients {
        query: query_grad,
        key: summed(&parts[0], key, "gradient of keys")?,
        value: summed(&parts[1], value, "gradient of values")?,
        table: match seen.bias.filter(|_| of_table) {
            Some(bias) => {
                let tensors = [query, key, value, grad, &known];
                let sizes = (sequences, each, capacity);
                Some(bias_grad(device, tensors, heads, (bias, seen.mask()), sizes)?)
            }
            None => None,
        },
    })
}

pub(super) fn variants() -> Vec<Variant> {
    let with = |dtype| SHAPES.map(|constants| shaped(dtype, constants));
    [with(DType::F32), with(DType::F16)].concat()
}

/// Those of kernels whose gradients are f32.
pub(super) fn grad_variants() -> Vec<Variant> {
    let wide = |variant: Variant| Variant { output: DType::F32, ..variant };
    variants().into_iter().map(wide).collect()
}

/// The variant for heads of so many columns, at most [`MAX_HEAD_DIM`](super::MAX_HEAD_DIM).
pub(super) fn variant(dtype: DType, head_dim: usize) -> Variant {
    let fits = |constants: &&&[(&str, u32)]| head_dim <= constants[0].1 as usize;
    let constants = SHAPES.iter().find(fits).expect("heads have a largest size");
    shaped(dtype, constants)
}

fn shaped(dtype: DType, constants: &'static [(&'static str, u32)]) -> Variant {
    Variant { activation: dtype, output: dtype, constants, ..Variant::BASELINE }
}

/// Cost of `operations` a column for each pair of a query and a key that it sees, of tiles of tokens or of places.
pub(super) fn cost(args: &Args<'_>, operations: f64, of_places: bool) -> Cost {
    let p: Params = args.parameters();
    let owners = owners(args.variant) as f64;
    let window = f64::from(p.window) + owners;
    let rows = match (p.mask.causal, of_places) {
        (1, _) => f64::from(p.tokens_per_sequence) / 2.0,
        (_, true) => f64::from(p.tokens_per_sequence),
        (_, false) => f64::from(p.capacity),
    };
    let pairs = f64::from(p.tiles) * owners * f64::min(rows, window);
    let columns = pairs * f64::from(p.heads) * f64::from(p.head_dim);
    Cost {
        operations: operations * columns,
        // Two rows pass by for all that a workgroup owns.
        bytes: 2.0 * columns * args.variant.activation.size() as f64 / owners,
    }
}

/// The tokens of a call's tiles: (sequence, place in it). The last tiles, which see most keys, go first.
pub(super) fn own_tokens(args: &Args<'_>) -> Vec<(usize, usize)> {
    let p: Params = args.parameters();
    let (length, owners) = (p.tokens_per_sequence as usize, owners(args.variant));
    let last = length.div_ceil(owners) - 1;
    owned(&p, (length, owners), |tile| last - tile)
}

/// The places in caches of a call's tiles: (sequence, place). The first tiles, which most tokens see, go first.
pub(super) fn own_places(args: &Args<'_>) -> Vec<(usize, usize)> {
    let p: Params = args.parameters();
    owned(&p, (p.capacity as usize, owners(args.variant)), |tile| tile)
}

fn owned(
    p: &Params,
    (length, owners): (usize, usize),
    place: impl Fn(usize) -> usize,
) -> Vec<(usize, usize)> {
    let sequences = p.sequences as usize;
    let tiles = p.tile_start as usize..(p.tile_start + p.tiles) as usize;
    let rows = |tile: usize| {
        let first = place(tile / sequences) * owners;
        (first..length.min(first + owners)).map(move |row| (tile % sequences, row))
    };
    tiles.flat_map(rows).collect()
}

impl Params {
    /// Those of a layer over so many sequences of so many tokens, and caches of so many places; `tiles` from `start` on.
    pub(super) fn new(
        attention: &Attention,
        (sequences, each, capacity): (usize, usize, usize),
        (start, tiles): (usize, usize),
    ) -> Self {
        Self {
            tiles: tiles as u32,
            tile_start: start as u32,
            sequences: sequences as u32,
            tokens_per_sequence: each as u32,
            heads: attention.query as u32,
            kv_heads: attention.kv as u32,
            head_dim: attention.dim as u32,
            capacity: capacity as u32,
            scale: attention.scale,
            window: attention.window_word(),
            soft_cap: attention.soft_cap_word(),
            mask: Mask::CAUSAL,
        }
    }

    /// Where a head of a token starts, in elements.
    pub(super) fn token(&self, (sequence, place): (usize, usize), head: usize) -> usize {
        self.row((sequence, place), head) * self.head_dim as usize
    }

    /// The row of (all tokens, heads) of a head of a token.
    pub(super) fn row(&self, (sequence, place): (usize, usize), head: usize) -> usize {
        (sequence * self.tokens_per_sequence as usize + place) * self.heads as usize + head
    }

    /// Where a key-value head of a place in a sequence's cache starts, in elements.
    pub(super) fn place(&self, (sequence, place): (usize, usize), kv_head: usize) -> usize {
        let row = sequence * self.capacity as usize + place;
        (row * self.kv_heads as usize + kv_head) * self.head_dim as usize
    }

    /// The places of the keys that token number `order` sees of a sequence that `end` is said of.
    pub(super) fn seen(&self, end: u32, order: usize) -> Range<usize> {
        self.mask.keys(end, order, self.window)
    }

    /// The bias of a head's score of the key at a place for a token, of the words that kernels read.
    pub(super) fn bias(
        &self,
        (end, words): (u32, &[u32]),
        head: usize,
        order: usize,
        place: usize,
    ) -> f32 {
        self.mask.bias((words, self.sequences), head, (end, order), place)
    }

    /// The derivative of the soft cap, where there is one, of a capped score.
    pub(super) fn slope(&self, score: f32) -> f32 {
        if self.soft_cap == 0.0 {
            return 1.0;
        }
        let ratio = score / self.soft_cap;
        1.0 - ratio * ratio
    }

    /// Query heads of one key-value head.
    pub(super) fn group(&self) -> usize {
        (self.heads / self.kv_heads) as usize
    }
}

/// The sum of products and that of their magnitudes.
pub(super) fn dot_reference(a: &[f64], b: &[f64]) -> (f64, f64) {
    let (mut sum, mut magnitude) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        sum += a * b;
        magnitude += (a * b).abs();
    }
    (sum, magnitude)
}

/// The inputs of a gradient kernel, in f64.
pub(super) struct Inputs {
    pub(super) p: Params,
    pub(super) query: Vec<f64>,
    pub(super) key: Vec<f64>,
    pub(super) value: Vec<f64>,
    pub(super) grad: Vec<f64>,
    lse_delta: Vec<f64>,
    /// Words of sequences, and biases' bits.
    pub(super) places: Vec<u32>,
    /// Whether matrix units multiply, which take the weights and the gradients of scores in f16.
    matrix_units: bool,
}

/// What a head of a token and a key make, each with its error.
pub(super) struct Pair {
    /// The softmax's weight.
    pub(super) weight: (f64, f64),
    /// The gradient of the score.
    pub(super) score_grad: (f64, f64),
}

impl Inputs {
    pub(super) fn new(args: &Args<'_>) -> Self {
        let read = |binding: usize| args.tensors[binding].to_f64();
        Self {
            p: args.parameters(),
            query: read(0),
            key: read(1),
            value: read(2),
            grad: read(3),
            lse_delta: read(4),
            places: args.tensors[5].u32s().to_vec(),
            matrix_units: on_matrix_units(args.variant),
        }
    }

    /// A token's head beside the key at `place` of its sequence.
    ///
    /// An error d in a score, which is that of its sum of products, changes its weight by a factor exp(d); the exponent's
    /// subtraction is off by half an ulp of it, and exp by (3 + 2 |x|) ulp and what is flushed to zero. The score's gradient
    /// is a product, off by what either factor is off, and the soft cap's slope another.
    pub(super) fn pair(&self, token: (usize, usize), head: usize, place: usize) -> Pair {
        let p = &self.p;
        let (columns, scale) = (p.head_dim as usize, f64::from(p.scale));
        let (at, row) = (p.token(token, head), p.row(token, head));
        let there = p.place((token.0, place), head / p.group());
        let (here, there) = (at..at + columns, there..there + columns);
        let (score, magnitude) = dot_reference(&self.query[here.clone()], &self.key[there.clone()]);
        let cut_off = sum_slack(self.matrix_units);
        let bias = f64::from(p.bias((self.places[token.0], &self.places), head, token.1, place));
        let terms = columns + 2 + usize::from(p.mask.distances > 0);
        let score_error = cut_off * gamma(terms) * (scale * magnitude + bias.abs());
        let (score, score_error) = score_reference(score * scale + bias, score_error, p.soft_cap);
        let exponent = score - self.lse_delta[2 * row];
        let weight = exponent.exp();
        let flushed = f64::from(f32::MIN_POSITIVE);
        let relative = 2.0 * (score_error + (8.0 + 6.0 * exponent.abs().min(100.0)) * U);
        let weight_error = relative * weight + flushed;
        let (weight_grad, magnitude) = dot_reference(&self.grad[here], &self.value[there]);
        let delta = self.lse_delta[2 * row + 1];
        let difference = weight_grad - delta;
        let difference_error =
            cut_off * gamma(columns) * magnitude + 2.0 * U * (weight_grad.abs() + delta.abs());
        let score_grad = weight * difference;
        let error = weight_error * difference.abs()
            + (weight + weight_error) * difference_error
            + 2.0 * U * score_grad.abs()
            + flushed;
        let (score_grad, error) = if p.soft_cap == 0.0 {
            (score_grad, error)
        } else {
            let cap = f64::from(p.soft_cap);
            let (slope, slope_error) = soft_cap_slope_reference(score, score_error, cap);
            let error = error * (slope.abs() + slope_error) + score_grad.abs() * slope_error;
            (score_grad * slope, error)
        };
        let stored = |(value, error): (f64, f64)| match self.matrix_units {
            false => (value, error),
            true => (value, error + half_factor(value.abs() + error)),
        };
        Pair { weight: stored((weight, weight_error)), score_grad: stored((score_grad, error)) }
    }
}

/// The error of a factor that matrix units take in f16, and of cutting off where its products, of up to some thousands, are
/// summed.
pub(super) fn half_factor(value: f64) -> f64 {
    storing(DType::F16, value) + f64::powi(2.0, -13) * value
}

/// Adds the products of a factor, off by its error, with a row of numbers to sums and their bounds, of `terms` in all.
pub(super) fn add_reference(
    sums: &mut [(f64, f64)],
    (factor, error): (f64, f64),
    row: &[f64],
    terms: usize,
) {
    let bound = error + gamma(terms + 2) * factor.abs();
    for ((sum, bounds), value) in sums.iter_mut().zip(row) {
        *sum += factor * value;
        *bounds += bound * value.abs();
    }
}

/// The sum of products in f32, in eight sums that a processor adds to at once.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_eights, a_rest) = a.as_chunks::<8>();
    let (b_eights, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (a, b) in a_eights.iter().zip(b_eights) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Adds a multiple of a row to sums in f32.
pub(super) fn add(sums: &mut [f32], factor: f32, row: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(row) {
        *sum += factor * value;
    }
}
