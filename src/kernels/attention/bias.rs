//! `attention/bias`: what attention's kernels read of a bias of scores by how far a key is from the token, which falls into a bucket
//! (Raffel et al. 2020, T5, arXiv 1910.10683, section 2.1): for each head the bias at each distance, so that a score needs one look.
//! Its bits stand behind a word of each sequence, so that kernels with many tensors bind one for both.

use crate::kernels::prelude::*;

params! {
    struct Params {
        sequences: u32,
        heads: u32,
        distances: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/bias",
    source: include_str!("../../../shaders/attention/bias.wgsl"),
    bindings: &[
        binding("ends", Access::Read, Element::Is(DType::U32)),
        binding("bucket", Access::Read, Element::Is(DType::U32)),
        binding("table", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| fold(args.tensors[3].len().div_ceil(64)),
    cost: |args| Cost::new(0.0, 12.0 * args.tensors[3].len() as f64),
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The buckets that distances from a token to a key fall into, on a device.
#[derive(Clone, Debug)]
pub struct Distances {
    /// u32 (2 reach + 1): of distances from -reach to reach, those beyond as the outermost.
    bucket: Tensor,
    /// u32 (buckets, 2): the first and the last such distance of each bucket, which is all between; the last before the first where
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
}

/// The first and the last distance of each of so many buckets.
pub(super) fn spans(bucket: &[u32], buckets: usize) -> Vec<u32> {
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

/// Scores' bias by the distance from a token to a key, as attention takes it.
#[derive(Clone, Debug)]
pub struct Bias {
    table: Tensor,
    distances: Distances,
    /// u32 (sequences + heads * distances)
    places: Tensor,
}

impl Bias {
    /// That of a table, f32 (buckets, heads), behind a word of each sequence: the [`ends`](super::Seen::ends) of the backward pass.
    pub fn new(
        device: &Device,
        table: &Tensor,
        distances: &Distances,
        ends: &Tensor,
    ) -> Result<Self> {
        let (heads, count) = (table.shape()[1], distances.bucket.len());
        let params =
            Params { sequences: ends.len() as u32, heads: heads as u32, distances: count as u32 };
        let places = device.allocate(DType::U32, &[ends.len() + heads * count], "biases")?;
        let tensors = [ends, &distances.bucket, table, &places];
        device.call(&KERNEL, Variant::BASELINE, &params, &tensors)?;
        Ok(Self { table: table.clone(), distances: distances.clone(), places })
    }

    /// What it was made of, f32 (buckets, heads).
    pub fn table(&self) -> &Tensor {
        &self.table
    }

    pub(super) fn places(&self) -> &Tensor {
        &self.places
    }

    /// How many distances have a bias each.
    pub(super) fn distances(&self) -> usize {
        self.distances.bucket.len()
    }

    /// u32 (buckets, 2): the first and the last distance of each bucket.
    pub(super) fn spans(&self) -> &Tensor {
        &self.distances.spans
    }
}

/// The words, of which those of biases are told as f32's bits.
pub(super) fn words(ends: &[u32], bucket: &[u32], (table, heads): (&[f32], usize)) -> Vec<u32> {
    let of_head = |head: usize| bucket.iter().map(move |own| table[*own as usize * heads + head]);
    let biases = (0..heads).flat_map(of_head).map(f32::to_bits);
    ends.iter().copied().chain(biases).collect()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let table = args.tensors[2].to_f32();
    let words = words(args.tensors[0].u32s(), args.tensors[1].u32s(), (&table, p.heads as usize));
    vec![Expected::exact(words.into_iter().map(f64::from).collect())]
}

fn case(sequences: usize, heads: usize, reach: usize) -> Case {
    let label = format!("sequences={sequences},heads={heads},reach={reach}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(71);
        let distances = 2 * reach + 1;
        let bucket: Vec<u32> = (0..distances as u32).map(|place| place / 3).collect();
        let buckets = distances.div_ceil(3);
        let ends: Vec<u32> = (0..sequences).map(|_| random.below(1 << 20)).collect();
        let params = Params {
            sequences: sequences as u32,
            heads: heads as u32,
            distances: distances as u32,
        };
        let table = random.values(buckets * heads, 2.0);
        params.case(vec![
            HostTensor::from_u32(&[sequences], &ends),
            HostTensor::from_u32(&[distances], &bucket),
            HostTensor::from_f32(DType::F32, &[buckets, heads], &table),
            HostTensor::zeros(DType::U32, &[sequences + heads * distances]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 70), sizes.between(1, 1, 40), sizes.between(2, 1, 150))
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1, 1),
        case(3, 12, 128),
        case(65, 2, 7),
        case(2, 5, 3).poisoned(2, Poison::Zeros),
        case(8, 32, 128).bench(),
    ]
}
