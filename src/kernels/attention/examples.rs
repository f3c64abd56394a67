//! Cases of attention's backward kernels: layers with a forward result and what the kernels make of it, in f64 and plainly.

use super::Attention;
use super::backward::{Params, owners};
use super::bias::spans;
use super::causal::{Look, random_layer};
use crate::kernels::prelude::*;

/// A layer to try a kernel on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    sequences: usize,
    /// Tokens of a sequence.
    each: usize,
    heads: Attention,
    look: Look,
    note: &'static str,
}

impl Shape {
    /// A causal layer.
    fn new(sequences: usize, each: usize, heads: Attention, note: &'static str) -> Self {
        Self { sequences, each, heads, look: Look::CAUSAL, note }
    }

    /// The same that sees something else.
    fn seeing(self, look: Look) -> Self {
        Self { look, ..self }
    }

    /// The same with a bias, if it had none.
    pub(super) fn with_bias(self) -> Self {
        let look = if self.is_biased() { self.look } else { self.look.biased(6) };
        Self { look, ..self }
    }

    /// Whether scores have a bias.
    pub(super) fn is_biased(&self) -> bool {
        self.look.buckets > 0
    }
}

/// A layer's inputs, its result and that result's gradient, rounded to the variant's type.
pub(super) struct Example {
    shape: Shape,
    capacity: usize,
    /// The words of sequences, and biases' bits.
    words: Vec<u32>,
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) value: Vec<f32>,
    pub(super) result: Vec<f32>,
    pub(super) grad: Vec<f32>,
    /// The log-sum-exp and the result's product with its gradient, of each token and head.
    pub(super) lse_delta: Vec<f32>,
}

impl Example {
    fn new(shape: Shape, dtype: DType) -> Self {
        let Shape { sequences, each, heads, look, note } = shape;
        let mut random = Random::new(8);
        let tokens = sequences * each;
        let keys = if look.causal() { each } else { look.keys };
        let capacity = if note == ",full" { keys } else { keys + 3 };
        let ends: Vec<u32> = (0..sequences).map(|sequence| look.end(0, sequence)).collect();
        let held = |end: &u32| if look.causal() { each } else { *end as usize };
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
        // Places of the cache that nobody sees may hold anything.
        let mut cache = || {
            let mut values = random.values(sequences * capacity * pitch, 1.0);
            for (sequence, end) in values.chunks_exact_mut(capacity * pitch).zip(&ends) {
                sequence[held(end) * pitch..].fill(f32::NAN);
            }
            rounded(dtype, &values)
        };
        let (key, value) = (cache(), cache());
        let mut example = Self {
            shape,
            capacity,
            words: look.places(&ends, heads.query, note),
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
        let Attention { query, dim, .. } = self.shape.heads;
        let rows = self.shape.sequences * self.shape.each * query;
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
        let Attention { query, kv, dim, scale, .. } = self.shape.heads;
        let (sequence, order) = (token / self.shape.each, token % self.shape.each);
        let row = |values: &[f32], place: usize| -> Vec<f64> {
            let at = ((sequence * self.capacity + place) * kv + head / (query / kv)) * dim;
            values[at..at + dim].iter().copied().map(f64::from).collect()
        };
        let at = (token * query + head) * dim;
        let (p, end) = (self.params((0, 0)), self.words[sequence]);
        let keys = p.seen(end, order);
        let scores: Vec<f64> = keys
            .clone()
            .map(|place| {
                let products = self.query[at..at + dim].iter().zip(row(&self.key, place));
                let sum: f64 = products.map(|(q, k)| f64::from(*q) * k).sum();
                let bias = p.bias((end, &self.words), head, order, place);
                let score = sum * f64::from(scale) + f64::from(bias);
                let cap = self.shape.heads.soft_cap.map(f64::from);
                cap.map_or(score, |cap| cap * (score / cap).tanh())
            })
            .collect();
        let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - maximum).exp()).sum();
        let lse = maximum + total.ln();
        let mut sums = vec![0.0; dim];
        for (place, score) in keys.zip(&scores) {
            for (sum, value) in sums.iter_mut().zip(row(&self.value, place)) {
                *sum += (score - lse).exp() * value;
            }
        }
        (sums.iter().map(|sum| *sum as f32).collect(), lse)
    }

    /// The parameters for so many tiles, from one on.
    fn params(&self, tiles: (usize, usize)) -> Params {
        let Shape { sequences, each, heads, look, .. } = self.shape;
        Params { mask: look.mask(), ..Params::new(&heads, (sequences, each, self.capacity), tiles) }
    }

    /// (sequences + heads * distances)
    pub(super) fn places(&self) -> HostTensor {
        HostTensor::from_u32(&[self.words.len()], &self.words)
    }

    /// u32 (buckets, 2): the first and last distance of each.
    pub(super) fn spans(&self) -> HostTensor {
        let look = self.shape.look;
        HostTensor::from_u32(&[look.buckets, 2], &spans(&look.bucket(), look.buckets))
    }

    /// The buckets of distances, heads, and tiles of so many tokens.
    pub(super) fn parts_of_table(&self, owners: usize) -> [usize; 3] {
        let Shape { sequences, each, heads, look, .. } = self.shape;
        [look.buckets, heads.query, sequences * each.div_ceil(owners)]
    }

    /// (all tokens, heads, head_dim).
    pub(super) fn tokens(&self, values: &[f32], variant: &Variant) -> HostTensor {
        let shape =
            [self.shape.sequences * self.shape.each, self.shape.heads.query, self.shape.heads.dim];
        HostTensor::from_f32(variant.activation, &shape, values)
    }

    /// (sequences, capacity, kv_heads, head_dim).
    pub(super) fn cache(&self, values: &[f32], variant: &Variant) -> HostTensor {
        let shape =
            [self.shape.sequences, self.capacity, self.shape.heads.kv, self.shape.heads.dim];
        HostTensor::from_f32(variant.activation, &shape, values)
    }

    /// (all tokens, heads, head_dim), of the results' type: the result, or what stands there before.
    pub(super) fn results(&self, variant: &Variant) -> HostTensor {
        let shape =
            [self.shape.sequences * self.shape.each, self.shape.heads.query, self.shape.heads.dim];
        HostTensor::from_f32(variant.output, &shape, &self.result)
    }

    /// (sequences, capacity, heads, head_dim), of the results' type: what stands there before.
    pub(super) fn parts(&self, variant: &Variant) -> HostTensor {
        let shape =
            [self.shape.sequences, self.capacity, self.shape.heads.query, self.shape.heads.dim];
        let values = Random::new(9).values(shape.iter().product(), 1.0);
        HostTensor::from_f32(variant.output, &shape, &values)
    }

    /// (all tokens, heads, 2).
    pub(super) fn known(&self, values: &[f32]) -> HostTensor {
        let shape = [self.shape.sequences * self.shape.each, self.shape.heads.query, 2];
        HostTensor::from_f32(DType::F32, &shape, values)
    }
}

fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    HostTensor::from_f32(dtype, &[values.len()], values).to_f32()
}

/// A case whose tiles are of tokens, or of places in the cache.
pub(super) fn case(
    shape: Shape,
    of_places: bool,
    tensors: fn(&Example, &Variant) -> Vec<HostTensor>,
) -> Case {
    let Shape { sequences, each, heads, look, note } = shape;
    let Attention { query, kv, dim, .. } = heads;
    let scores = heads.score_label() + &look.label();
    let label = format!(
        "sequences={sequences},tokens={each},heads={query}/{kv},head_dim={dim}{scores}{note}"
    );
    let case = Case::new(label, move |variant: &Variant| {
        let example = Example::new(shape, variant.activation);
        let length = if of_places { example.capacity } else { each };
        let tiles = sequences * length.div_ceil(owners(variant));
        let skip = usize::from(note == ",part");
        let params = example.params((skip, tiles - 2 * skip));
        params.case(tensors(&example, variant))
    });
    match dim {
        0..=64 => case,
        65..=128 => case.only(|variant| variant.constant("DIM") >= 128),
        _ => case.only(|variant| variant.constant("DIM") >= 256),
    }
}

/// Makes a kernel's case.
type Make = fn(Shape) -> Case;

/// A random layer.
pub(super) fn random_shape(sizes: &Sizes) -> Shape {
    let kv = sizes.between(2, 1, 3);
    let heads = Attention::new(kv * sizes.between(3, 1, 4), kv, 4 * sizes.between(4, 1, 64));
    let (heads, look) = random_layer(sizes, heads);
    Shape::new(sizes.between(0, 1, 3), sizes.between(1, 1, 60), heads, "").seeing(look)
}

pub(super) fn random(sizes: &Sizes, make: Make) -> Case {
    make(random_shape(sizes))
}

fn dim_64(variant: &Variant) -> bool {
    variant.constant("DIM") == 64
}

/// A layer of an encoder.
pub(super) const LARGE: Shape = Shape {
    sequences: 4,
    each: 512,
    heads: Attention { query: 16, kv: 16, dim: 64, scale: 1.0, window: None, soft_cap: None },
    look: Look::all(512).biased(32),
    note: ",full",
};

/// Layers that kernels are tried on, all but those of real use.
pub(super) fn shapes() -> Vec<Shape> {
    let (heads, make) = (Attention::new, Shape::new);
    vec![
        make(2, 5, heads(4, 2, 24), ""),
        make(1, 48, heads(9, 3, 64), ",full"),
        make(2, 37, heads(3, 3, 64), "").seeing(Look::all(70).biased(12)),
        make(1, 1, heads(1, 1, 4), ""),
        make(1, 50, heads(2, 1, 64), "").seeing(Look::CAUSAL.biased(16)),
        make(1, 75, heads(4, 2, 128), ""),
        // Matrix units are trusted by the layers up to here.
        make(2, 70, heads(3, 1, 12), ""),
        make(1, 150, heads(2, 1, 64), ""),
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
        // All keys of other texts, of other numbers in each: of more than a tile, of no whole four, few for many tokens, one.
        make(3, 20, heads(4, 2, 16), "").seeing(Look::all(133)),
        make(3, 1, heads(2, 2, 64), "").seeing(Look::all(40)),
        make(2, 70, heads(2, 1, 32), ",part").seeing(Look::all(2).biased(6)),
        make(1, 33, heads(2, 2, 128), "").seeing(Look::all(66).biased(32)),
        make(2, 9, heads(1, 1, 256), "").seeing(Look::all(31)),
        make(1, 40, heads(2, 2, 8), ",full").seeing(Look::all(40).biased(4)),
        make(2, 18, heads(2, 1, 32), ",large").seeing(Look::all(33).biased(4)),
        make(1, 77, heads(2, 1, 8), ",nan").seeing(Look::all(20).biased(6)),
        make(1, 40, heads(2, 1, 8).with_window(7), "").seeing(Look::CAUSAL.biased(6)),
        make(1, 30, heads(4, 2, 16).with_soft_cap(2.0), "").seeing(Look::all(50).biased(6)),
        make(2, 40, heads(2, 2, 8), ",part").seeing(Look::CAUSAL.biased(4)),
    ]
}

pub(super) fn cases(make: Make) -> Vec<Case> {
    let (heads, shape) = (Attention::new, Shape::new);
    let mut cases: Vec<Case> = shapes().into_iter().map(make).collect();
    cases.extend([
        make(shape(1, 2048, heads(32, 4, 64), ",full")).only(dim_64).bench(),
        make(shape(8, 512, heads(9, 3, 64), ",full")).only(dim_64).bench(),
        make(shape(10, 64, heads(9, 3, 64), ",full")).only(dim_64).bench(),
        make(shape(4, 512, heads(32, 4, 64), ",full")).only(dim_64).bench(),
        make(LARGE).only(dim_64).bench(),
        make(shape(1, 512, heads(32, 8, 128), ",full"))
            .only(|variant| variant.constant("DIM") == 128)
            .bench(),
    ]);
    cases
}
