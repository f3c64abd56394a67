//! Attention whose softmax's weights are stored, those of some tokens at a time: for tokens that see keys on both sides of them, or
//! the keys of another text, and with a bias of scores by how far a key is from the token (Raffel et al. 2020, T5, arXiv
//! 1910.10683, section 2.1). Every query head has a key-value head of its own.
//!
//! With p the weights and dp = d_out v, the scores' gradient is p (dp - sum p dp), from which those of queries, keys and the bias
//! follow by sums. The weights are computed twice, so that nothing is kept but queries, keys and values.

use super::bias_grad::bias_grad;
use super::mix::mix;
use super::mix_grad::mix_grad;
use super::weights::weights;
use super::weights_grad::weights_grad;
use super::{Attention, MAX_HEAD_DIM};
use crate::kernels::prelude::*;

params! {
    /// Parameters of all kernels of it: some tokens of a call, the keys that they see, and what is made of scores.
    struct Params {
        tokens: u32,
        token_start: u32,
        tokens_per_sequence: u32,
        heads: u32,
        head_dim: u32,
        /// Places of a sequence's cache.
        capacity: u32,
        /// The first place that is looked at.
        first: u32,
        /// Keys from there on that have a weight.
        columns: u32,
        /// 1: a token sees no key behind it.
        causal: u32,
        /// 1: scores have a bias.
        biased: u32,
        /// The distance whose bucket is that of all larger ones.
        reach: u32,
        buckets: u32,
        /// The factor of scores, or of sums.
        scale: f32,
    }
}

/// Scores' bias by the distance from a token to a key.
#[derive(Clone, Debug)]
pub struct Bias {
    /// f32 (buckets, heads)
    pub table: Tensor,
    /// Which bucket a distance is in.
    pub distances: Distances,
}

/// The buckets that distances from a token to a key fall into, on a device.
#[derive(Clone, Debug)]
pub struct Distances {
    /// u32 (2 reach + 1): of distances from -reach to reach, those beyond as the outermost.
    bucket: Tensor,
    /// u32 (buckets, 2): the first and the last such place of each bucket, which is all between; the last before the first where
    /// there is none.
    spans: Tensor,
}

impl Distances {
    /// Of distances from -reach to reach, an odd number, those buckets of so many. Distances of a bucket are neighbours.
    pub fn upload(device: &Device, bucket: &[u32], buckets: usize) -> Result<Self> {
        let words = |shape: &[usize], values: &[u32], what: &str| {
            device.upload(&HostTensor::from_u32(shape, values), what)
        };
        Ok(Self {
            bucket: words(&[bucket.len()], bucket, "buckets of distances")?,
            spans: words(&[buckets, 2], &spans(bucket, buckets), "distances of buckets")?,
        })
    }

    /// The distance whose bucket is that of all larger ones.
    fn reach(&self) -> u32 {
        (self.bucket.len() / 2) as u32
    }
}

/// The first and the last place of each of so many buckets.
fn spans(bucket: &[u32], buckets: usize) -> Vec<u32> {
    let span = |wanted: u32| {
        let places = || (0u32..).zip(bucket).filter(move |(_, one)| **one == wanted);
        let (first, last) = (places().next(), places().last());
        let span = first.zip(last).map_or([1, 0], |((first, _), (last, _))| [first, last]);
        let is = |place: u32| bucket[place as usize] == wanted;
        assert!((span[0]..=span[1]).all(is), "distances of a bucket are neighbours");
        span
    };
    (0..buckets as u32).flat_map(span).collect()
}

/// The keys that tokens see, of caches of (sequences, capacity, heads, head_dim).
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// u32 (sequences): the place behind the last key, or, where tokens see no key behind them, that of a sequence's first token.
    pub ends: &'a Tensor,
    /// Whether a token sees no key behind its own place.
    pub causal: bool,
    /// The first key's place.
    pub first: usize,
    /// Keys that no token sees more of.
    pub columns: usize,
}

/// A layer of it.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Heads and the factor of scores: as many key-value heads as query heads, no window, no soft cap.
    pub heads: Attention,
    /// What is added to scores.
    pub bias: Option<&'a Bias>,
    /// What is seen.
    pub seen: Seen<'a>,
}

/// Bytes of weights at a time, at most.
const WEIGHT_BYTES: u64 = 64 << 20;

impl Layer<'_> {
    /// The parameters for some tokens of a query, (tokens, heads, head_dim), over caches of so many places.
    fn params(
        &self,
        query: &Tensor,
        key: &Tensor,
        (start, tokens): (usize, usize),
        scale: f32,
    ) -> Params {
        let Attention { query: heads, dim, .. } = self.heads;
        let Seen { ends, causal, first, columns } = self.seen;
        let sequences = ends.len();
        let all = query.len() / (heads * dim);
        Params {
            tokens: tokens as u32,
            token_start: start as u32,
            tokens_per_sequence: (all / sequences) as u32,
            heads: heads as u32,
            head_dim: dim as u32,
            capacity: (key.len() / (sequences * heads * dim)) as u32,
            first: first as u32,
            columns: columns as u32,
            causal: u32::from(causal),
            biased: u32::from(self.bias.is_some()),
            reach: self.bias.map_or(0, |bias| bias.distances.reach()),
            buckets: self.bias.map_or(0, |bias| bias.table.shape()[0] as u32),
            scale,
        }
    }

    /// The tokens of each call, `unit` of them or a multiple: as many as weights and one call have room for.
    fn steps(&self, device: &Device, tokens: usize, unit: usize) -> Vec<(usize, usize)> {
        let Attention { query, kv, dim, window, soft_cap, .. } = self.heads;
        assert!(
            query == kv && dim <= MAX_HEAD_DIM && window.is_none() && soft_cap.is_none(),
            "each head has keys of its own, and sees all of them as they are"
        );
        let pairs = query * self.seen.columns;
        let room = WEIGHT_BYTES.min(device.max_tensor_bytes()) / (4 * pairs) as u64;
        let quick = device.call_limit().operations / (4 * pairs * dim) as f64;
        let step = ((room as f64).min(quick) as usize / unit).max(1) * unit;
        let starts = (0..tokens).step_by(step);
        starts.map(|start| (start, step.min(tokens - start))).collect()
    }

    /// The weights of some tokens, f32 (tokens, heads, columns).
    fn weights(&self, device: &Device, query: &Tensor, key: &Tensor, p: Params) -> Result<Tensor> {
        let shape = [p.tokens as usize, self.heads.query, self.seen.columns];
        let result = device.allocate(DType::F32, &shape, "weights of attention")?;
        let nothing;
        let (table, bucket) = match self.bias {
            Some(bias) => (&bias.table, &bias.distances.bucket),
            None => {
                nothing = (
                    device.allocate(DType::F32, &[1], "no bias")?,
                    device.allocate(DType::U32, &[1], "no buckets")?,
                );
                (&nothing.0, &nothing.1)
            }
        };
        weights(device, p, [query, key, self.seen.ends, table, bucket, &result])?;
        Ok(result)
    }
}

/// softmax(scale q k^T + bias) v over the keys that are seen: `query` is (tokens, heads, head_dim), the tokens of a sequence in a row
/// and of each as many, `key` and `value` are (sequences, capacity, heads, head_dim); all of one type, f32 or f16. The result is of
/// the query's shape, in type `output`. Every token sees a key.
pub fn forward(
    device: &Device,
    query: &Tensor,
    (key, value): (&Tensor, &Tensor),
    layer: Layer<'_>,
    output: DType,
) -> Result<Tensor> {
    let (width, scale) = (layer.heads.query * layer.heads.dim, layer.heads.scale);
    let result = device.allocate(output, query.shape(), "attention")?;
    for step in layer.steps(device, query.len() / width, 1) {
        let own = layer.weights(device, query, key, layer.params(query, key, step, scale))?;
        mix(
            device,
            layer.params(query, value, step, 1.0),
            [&own, value, layer.seen.ends, &result],
        )?;
    }
    Ok(result)
}

/// The gradients of [`forward`] at the query, the keys, the values, and the bias' table where there is one, from `grad`, that of its
/// result. All are f32, also what goes in, and of the shapes of what they are the gradients of. `first` is 0 and `columns` the
/// caches' places, so that all of them have one.
pub fn backward(
    device: &Device,
    query: &Tensor,
    (key, value): (&Tensor, &Tensor),
    layer: Layer<'_>,
    grad: &Tensor,
) -> Result<([Tensor; 3], Option<Tensor>)> {
    let Layer { heads, bias, seen } = layer;
    let width = heads.query * heads.dim;
    let (tokens, sequences) = (query.len() / width, seen.ends.len());
    let of = |like: &Tensor, what: &str| device.allocate(DType::F32, like.shape(), what);
    let of_query = of(query, "gradient of queries")?;
    let (of_key, of_value) = (of(key, "gradient of keys")?, of(value, "gradient of values")?);
    let of_table = match bias {
        Some(bias) => {
            let zeros = HostTensor::zeros(DType::F32, bias.table.shape());
            Some(device.upload(&zeros, "gradient of a bias")?)
        }
        None => None,
    };
    // Whole sequences, so that each key's tokens are all in one call.
    for step in layer.steps(device, tokens, tokens / sequences) {
        let with = |scale| layer.params(query, key, step, scale);
        let (scaled, plain) = (with(heads.scale), with(1.0));
        let own = layer.weights(device, query, key, scaled)?;
        mix_grad(device, plain, [&own, grad, &of_value])?;
        let of_scores = device.allocate(DType::F32, own.shape(), "gradient of scores")?;
        weights_grad(device, plain, [&own, value, seen.ends, grad, &of_scores])?;
        mix(device, scaled, [&of_scores, key, seen.ends, &of_query])?;
        mix_grad(device, scaled, [&of_scores, query, &of_key])?;
        if let (Some(bias), Some(of_table)) = (bias, &of_table) {
            let spans = &bias.distances.spans;
            bias_grad(device, plain, [&of_scores, seen.ends, spans, of_table])?;
        }
    }
    Ok(([of_query, of_key, of_value], of_table))
}

/// One head of one token of a call, and the keys that it sees.
pub(super) struct Row {
    pub(super) head: usize,
    /// The token's place among the keys, counted from the cache's first.
    pub(super) place: usize,
    pub(super) keys: usize,
    /// Where the keys' elements begin, and how far each is from the next.
    pub(super) cache: usize,
    pub(super) pitch: usize,
    /// Where its weights begin.
    pub(super) line: usize,
    /// Where its columns begin.
    pub(super) own: usize,
}

impl Row {
    pub(super) fn new(p: &Params, ends: &[u32], index: usize) -> Self {
        let (heads, dim) = (p.heads as usize, p.head_dim as usize);
        let token = p.token_start as usize + index / heads;
        let (sequence, order) =
            (token / p.tokens_per_sequence as usize, token % p.tokens_per_sequence as usize);
        let head = index % heads;
        let known = ends[sequence] as usize;
        let (end, place) = match p.causal {
            0 => (known, order),
            _ => (known + order + 1, known + order),
        };
        let pitch = heads * dim;
        Self {
            head,
            place,
            keys: end.saturating_sub(p.first as usize).min(p.columns as usize),
            cache: (sequence * p.capacity as usize + p.first as usize) * pitch + head * dim,
            pitch,
            line: index * p.columns as usize,
            own: (token * heads + head) * dim,
        }
    }

    /// Those of a call, in their order.
    pub(super) fn all(p: Params, ends: &[u32]) -> impl IndexedParallelIterator<Item = Self> {
        let rows = p.tokens as usize * p.heads as usize;
        (0..rows).into_par_iter().map(move |index| Self::new(&p, ends, index))
    }

    /// The elements of one of its keys.
    pub(super) fn key<'a, T>(&self, values: &'a [T], key: usize, columns: usize) -> &'a [T] {
        let at = self.cache + key * self.pitch;
        &values[at..at + columns]
    }

    /// The distance of one of its keys as buckets know it.
    pub(super) fn step(&self, p: &Params, key: usize) -> usize {
        let reach = p.reach as isize;
        let distance = (p.first as usize + key) as isize - self.place as isize;
        (distance.clamp(-reach, reach) + reach) as usize
    }
}

/// Cost of `operations` a column for each pair of a token and a key, and of weights that pass by so many times.
pub(super) fn cost(args: &Args<'_>, operations: f64, passes: f64) -> Cost {
    let p: Params = args.parameters();
    let share = if p.causal == 1 { 0.5 } else { 1.0 };
    let pairs = share * f64::from(p.tokens) * f64::from(p.heads) * f64::from(p.columns);
    let columns = pairs * f64::from(p.head_dim);
    Cost::new(operations * columns, 4.0 * passes * pairs + 0.25 * columns)
}

/// A layer to try kernels on.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) sequences: usize,
    /// Tokens of a sequence.
    pub(super) each: usize,
    pub(super) heads: usize,
    pub(super) dim: usize,
    /// Keys of a sequence; those of its own tokens where it sees none behind them.
    pub(super) keys: usize,
    /// The first place of the cache that is looked at.
    pub(super) first: usize,
    pub(super) causal: bool,
    /// Buckets of distances; 0: no bias.
    pub(super) buckets: usize,
    /// Whether a call takes a part of the tokens: whole sequences but the first.
    pub(super) part: bool,
}

impl Shape {
    pub(super) const fn new(sequences: usize, each: usize, heads: usize, dim: usize) -> Self {
        Self {
            sequences,
            each,
            heads,
            dim,
            keys: each,
            first: 0,
            causal: false,
            buckets: 0,
            part: false,
        }
    }

    pub(super) const fn over(self, keys: usize) -> Self {
        Self { keys, ..self }
    }

    pub(super) const fn causal(self, first: usize) -> Self {
        Self { causal: true, first, ..self }
    }

    pub(super) const fn biased(self, buckets: usize) -> Self {
        Self { buckets, ..self }
    }

    pub(super) const fn part(self) -> Self {
        Self { part: true, ..self }
    }

    /// Places of a sequence's cache: a few more than are ever seen.
    fn capacity(&self) -> usize {
        self.first + self.keys + 2
    }

    pub(super) fn columns(&self) -> usize {
        self.keys + 1
    }

    /// Tokens of the call.
    pub(super) fn tokens(&self) -> usize {
        self.each * (self.sequences - usize::from(self.part))
    }

    pub(super) fn label(&self, note: &str) -> String {
        let Self { sequences, each, heads, dim, keys, first, causal, buckets, part } = *self;
        let mut label = format!(
            "sequences={sequences},tokens={each},heads={heads},head_dim={dim},keys={keys},first={first}"
        );
        if causal {
            label += ",causal";
        }
        if buckets > 0 {
            label += &format!(",buckets={buckets}");
        }
        if part {
            label += ",part";
        }
        label + note
    }

    pub(super) fn params(&self) -> Params {
        Params {
            tokens: self.tokens() as u32,
            token_start: (self.each * usize::from(self.part)) as u32,
            tokens_per_sequence: self.each as u32,
            heads: self.heads as u32,
            head_dim: self.dim as u32,
            capacity: self.capacity() as u32,
            first: self.first as u32,
            columns: self.columns() as u32,
            causal: u32::from(self.causal),
            biased: u32::from(self.buckets > 0),
            reach: self.reach() as u32,
            buckets: self.buckets as u32,
            scale: 0.75,
        }
    }

    fn reach(&self) -> usize {
        2 * self.buckets
    }

    /// Each sequence sees another number of keys; of those that see none behind them, each has as many before its first token.
    pub(super) fn ends(&self) -> Vec<u32> {
        let end = |sequence: usize| match self.causal {
            true => self.first + (self.keys - self.each).saturating_sub(sequence % 2),
            false => self.first + self.keys.saturating_sub(sequence).max(1),
        };
        (0..self.sequences).map(|sequence| end(sequence) as u32).collect()
    }

    pub(super) fn ends_tensor(&self) -> HostTensor {
        HostTensor::from_u32(&[self.sequences], &self.ends())
    }

    /// Buckets of distances, most of several distances, and one of none.
    pub(super) fn bucket(&self) -> Vec<u32> {
        let all = 2 * self.reach() + 1;
        let used = self.buckets.saturating_sub(1).max(1);
        (0..all).map(|step| (step * used / all) as u32).collect()
    }

    pub(super) fn spans(&self) -> HostTensor {
        HostTensor::from_u32(&[self.buckets, 2], &spans(&self.bucket(), self.buckets))
    }

    /// (all tokens, heads, head_dim)
    pub(super) fn of_tokens(&self, random: &mut Random, dtype: DType, scale: f32) -> HostTensor {
        let shape = [self.sequences * self.each, self.heads, self.dim];
        HostTensor::from_f32(dtype, &shape, &random.values(shape.iter().product(), scale))
    }

    /// (sequences, capacity, heads, head_dim): NaN where nobody looks.
    pub(super) fn of_keys(&self, random: &mut Random, dtype: DType) -> HostTensor {
        let (capacity, pitch) = (self.capacity(), self.heads * self.dim);
        let mut values = random.values(self.sequences * capacity * pitch, 1.0);
        let ends = self.ends();
        let seen = |sequence: usize| {
            let end = ends[sequence] as usize;
            self.first..if self.causal { end + self.each } else { end }
        };
        for (row, line) in values.chunks_exact_mut(pitch).enumerate() {
            if !seen(row / capacity).contains(&(row % capacity)) {
                line.fill(f32::NAN);
            }
        }
        HostTensor::from_f32(dtype, &[self.sequences, capacity, self.heads, self.dim], &values)
    }

    /// (tokens of the call, heads, columns): 0 for keys that a token does not see. Positive ones add up to about 1, others are as
    /// gradients are.
    pub(super) fn of_pairs(&self, random: &mut Random, positive: bool) -> HostTensor {
        let (columns, ends, p) = (self.columns(), self.ends(), self.params());
        let shape = [self.tokens(), self.heads, columns];
        let mut values = random.values(shape.iter().product(), 1.0);
        for (index, line) in values.chunks_exact_mut(columns).enumerate() {
            let keys = Row::new(&p, &ends, index).keys;
            line[keys..].fill(0.0);
            if positive {
                line.iter_mut().for_each(|value| *value = value.abs() / keys.max(1) as f32);
            }
        }
        HostTensor::from_f32(DType::F32, &shape, &values)
    }
}

/// A random layer.
pub(super) fn random_shape(sizes: &Sizes) -> Shape {
    let (each, keys) = (sizes.between(1, 1, 40), sizes.between(2, 1, 90));
    let dim = sizes.between(4, 1, 80);
    let shape = Shape::new(sizes.between(0, 1, 3), each, sizes.between(3, 1, 4), dim);
    let shape = match sizes.between(5, 0, 2) {
        0 => shape.over(keys),
        1 => shape.over(each + keys).causal(0),
        _ => shape.over(each + keys).causal(keys % 9),
    };
    if sizes.between(6, 0, 1) == 0 { shape } else { shape.biased(3 + keys % 14) }
}

/// The shapes that every kernel of it is tried on.
pub(super) const SHAPES: [Shape; 8] = [
    Shape::new(2, 5, 3, 16).biased(8),
    Shape::new(3, 1, 2, 64).over(130),
    Shape::new(1, 70, 2, 10).causal(0).biased(32),
    Shape::new(1, 1, 1, 1),
    Shape::new(2, 3, 2, 256).over(9).causal(7).biased(5),
    Shape::new(1, 40, 1, 8).over(40).biased(32),
    Shape::new(2, 7, 4, 12).over(66).part(),
    Shape::new(3, 9, 2, 6).causal(4).biased(6).part(),
];

/// Shapes of real use.
pub(super) const LARGE: [Shape; 2] =
    [Shape::new(4, 512, 16, 64).biased(32), Shape::new(4, 128, 16, 64).causal(0).biased(32)];
