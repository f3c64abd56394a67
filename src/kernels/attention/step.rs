//! `attention/step`: one new token of each sequence enters the cache and attends: what [`rope/enter`](crate::kernels::rope::enter)
//! and [`attention/split`](super::split) do one after the other, in one call, over a cache of the activations' type. The parts of
//! attention are put together as those of `attention/split` are.

use super::Attention;
use super::causal::{place, random_scores};
use super::split::{self, TILES, in_use, piece_reference};
use crate::kernels::kv::Cached;
use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::kernels::rope::enter;
use crate::tensor::WeightFormat;

params! {
    struct Params {
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
        /// Parts that a token's keys are cut into.
        splits: u32,
        /// Neighbouring lanes that share a key: a power of two.
        sharers: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/step",
    source: include_str!("../../../shaders/attention/step.wgsl"),
    bindings: &[
        binding("query", Access::Read, Element::Activation),
        binding("key", Access::Read, Element::Activation),
        binding("value", Access::Read, Element::Activation),
        binding("rotations", Access::Read, Element::Is(DType::F32)),
        binding("past", Access::Read, Element::Is(DType::U32)),
        binding("keys", Access::ReadWrite, Element::Activation),
        binding("values", Access::ReadWrite, Element::Activation),
        binding("parts", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let of = |activation| {
            TILES.map(|constants| Variant { constants, ..Variant::typed(activation, activation) })
        };
        let all = [of(DType::F32), of(DType::F16)].concat();
        let with = |subgroups| all.iter().map(move |v| v.clone().with_subgroups(subgroups));
        with(false).chain(with(true)).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        let shares = (p.heads / p.kv_heads).div_ceil(args.variant.constant("HEADS"));
        fold(p.sequences as usize * (p.kv_heads * shares * p.splits) as usize)
    },
    cost: |args| {
        let p: Params = args.parameters();
        let keys = f64::from(p.sequences) * f64::from(p.capacity.min(p.window));
        let results = f64::from(p.sequences * p.heads * p.splits) * f64::from(p.head_dim + 2);
        let row = 2.0 * args.tensors[5].dtype.size() as f64 * f64::from(p.kv_heads * p.head_dim);
        let operations = 4.0 * keys * f64::from(p.heads) * f64::from(p.head_dim);
        Cost::new(operations, keys * row + 4.0 * results)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// Bindings that it takes: adapters of the lowest tier may have fewer.
const BINDINGS: u32 = 8;

/// Whether it takes a new token of each sequence, given its query, key and value: heads whose halves are whole eights, a cache of
/// their type, and an adapter that binds so much at once.
pub fn takes(
    device: &Device,
    new: [&Tensor; 3],
    (keys, values): (&Cached, &Cached),
    heads: &Attention,
) -> bool {
    let ty = new[0].dtype();
    let plain = |cache: &Cached| cache.plain().is_some_and(|(dtype, _)| dtype == ty);
    heads.dim.is_multiple_of(16)
        && new.iter().all(|x| x.dtype() == ty)
        && plain(keys)
        && plain(values)
        && device.max_bindings() >= BINDINGS
}

/// The parts of attention, f32 (sequences, heads, splits, head_dim + 2), of a new token of each sequence: `query`, (sequences, heads *
/// head_dim), `key` and `value`, (sequences, kv_heads * head_dim). Query and key are rotated, key and value enter the cache behind
/// the `past` tokens that each sequence holds. No token sees more than `bound` keys.
pub fn step(
    device: &Device,
    [query, key, value]: [&Tensor; 3],
    (rotations, past): (&Tensor, &Tensor),
    (keys, values): (&Cached, &Cached),
    heads: Attention,
    bound: usize,
) -> Result<Tensor> {
    let sequences = past.len();
    let (constants, splits) = split::tile_and_splits(device, &heads, (sequences, bound));
    let shape = [sequences, heads.query, splits, heads.dim + 2];
    let parts = device.allocate(DType::F32, &shape, "parts of attention")?;
    let params = Params {
        sequences: sequences as u32,
        heads: heads.query as u32,
        kv_heads: heads.kv as u32,
        head_dim: heads.dim as u32,
        capacity: keys.capacity() as u32,
        scale: heads.scale,
        window: heads.window_word(),
        soft_cap: heads.soft_cap_word(),
        splits: splits as u32,
        sharers: split::sharers(heads.dim),
    };
    let subgroups = device.capabilities().subgroups;
    let variant = Variant { constants, subgroups, ..Variant::typed(query.dtype(), query.dtype()) };
    let (keys, values) = (keys.numbers(), values.numbers());
    device.call(
        &KERNEL,
        variant,
        &params,
        &[query, key, value, rotations, past, keys, values, &parts],
    )?;
    Ok(parts)
}

impl Params {
    /// The call of `rope/enter`.
    fn entering(&self) -> enter::Params {
        enter::Params {
            tokens: self.sequences,
            tokens_per_sequence: 1,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            capacity: self.capacity,
        }
    }

    /// The call of `attention/split`.
    fn attending(&self) -> split::Params {
        split::Params {
            tokens: self.sequences,
            token_start: 0,
            tokens_per_sequence: 1,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            capacity: self.capacity,
            scale: self.scale,
            window: self.window,
            soft_cap: self.soft_cap,
            splits: self.splits,
            sharers: self.sharers,
            layout: Layout::new(WeightFormat::f32(), 1),
        }
    }
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let [query, key, value, rotations, past, keys, values, parts] = args.tensors[..] else {
        unreachable!("a call has all bindings")
    };
    let rotated = HostTensor::zeros(query.dtype, query.shape);
    let params = p.entering();
    let entering = Args {
        variant: args.variant,
        parameters: bytemuck::bytes_of(&params),
        tensors: vec![query, key, value, rotations, past, rotated.view(), keys, values],
    };
    let entered = enter::reference(&entering);
    let known = |of: usize, index: usize| (entered[of].values[index], entered[of].bounds[index]);
    let rows = (
        |index: usize| known(0, index),
        |index: usize| known(1, index),
        |index: usize| known(2, index).0,
    );
    let (attending, splits) = (p.attending(), p.splits as usize);
    let past = past.u32s();
    let mut expected = Expected::exact(parts.to_f64());
    for row in 0..(p.sequences * p.heads) as usize {
        let place = place(&attending.whole(), past, row);
        for (split, keys) in split::cut(&place.keys, splits).enumerate() {
            let at = (row * splits + split) * (p.head_dim as usize + 2);
            expected.put(at, piece_reference(&attending, rows, &place, keys));
        }
    }
    let [_, keys, values] = <[Expected; 3]>::try_from(entered).expect("three results");
    vec![keys, values, expected]
}

/// A token more of `sequences`, which hold `past` tokens already, each one more than the one before.
fn case(
    sequences: usize,
    heads: Attention,
    past: usize,
    splits: usize,
    note: &'static str,
) -> Case {
    let Attention { query, kv, dim, .. } = heads;
    let scores = heads.score_label();
    let label = format!(
        "sequences={sequences},heads={query}/{kv},head_dim={dim},past={past},splits={splits}{scores}{note}"
    );
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(40);
        let capacity = past + sequences + 2;
        let ty = variant.activation;
        let size = if note == ",large" { 30.0 } else { 1.0 };
        let mut numbers = |shape: &[usize], size: f32| {
            let values = random.values(shape.iter().product(), size);
            HostTensor::from_f32(ty, shape, &values)
        };
        let new = [(query, 3.0 * size), (kv, 1.0), (kv, 1.0)]
            .map(|(heads, size)| numbers(&[sequences, heads * dim], size));
        let mut cache = [0, 1].map(|_| numbers(&[sequences, capacity, kv * dim], 1.0));
        // What stands behind the tokens that are held may be anything.
        for numbers in &mut cache {
            let row = numbers.words.len() / (sequences * capacity);
            for (place, words) in numbers.words.chunks_exact_mut(row).enumerate() {
                if place % capacity >= past + place / capacity {
                    words.fill(0x7fff_7fff);
                }
            }
        }
        let rotations = causal_rotations(capacity, dim);
        let held: Vec<u32> = (0..sequences).map(|sequence| (past + sequence) as u32).collect();
        let params = Params {
            sequences: sequences as u32,
            heads: query as u32,
            kv_heads: kv as u32,
            head_dim: dim as u32,
            capacity: capacity as u32,
            scale: heads.scale,
            window: heads.window_word(),
            soft_cap: heads.soft_cap_word(),
            splits: splits as u32,
            sharers: split::sharers(dim),
        };
        let parts = [sequences, query, splits, dim + 2];
        let old = random.values(parts.iter().product(), 1.0);
        let ([query, key, value], [keys, values]) = (new, cache);
        params.case(vec![
            query,
            key,
            value,
            rotations,
            HostTensor::from_u32(&[sequences], &held),
            keys,
            values,
            HostTensor::from_f32(DType::F32, &parts, &old),
        ])
    })
}

/// Cosines and sines of so many positions, f32 (positions, head_dim / 2, 2).
fn causal_rotations(positions: usize, head_dim: usize) -> HostTensor {
    let half = head_dim / 2;
    let turn = |index: usize| {
        let angle = (index / half) as f32 * 100f32.powf(-((index % half) as f32) / half as f32);
        [angle.cos(), angle.sin()]
    };
    let turns: Vec<f32> = (0..positions * half).flat_map(turn).collect();
    HostTensor::from_f32(DType::F32, &[positions, half, 2], &turns)
}

fn random(sizes: &Sizes) -> Case {
    let kv = sizes.between(2, 1, 3);
    let heads = Attention::new(kv * sizes.between(3, 1, 9), kv, 16 * sizes.between(4, 1, 16));
    let heads = random_scores(sizes, heads);
    // As many parts as another number has: sixteen at most.
    let splits = 1 + sizes.between(3, 0, 15);
    case(sizes.between(0, 1, 4), heads, sizes.between(5, 0, 200), splits, "")
}

fn cases() -> Vec<Case> {
    let heads = Attention::new;
    let mut cases = vec![
        case(2, heads(4, 2, 16), 0, 1, ""),
        case(2, heads(9, 3, 64), 130, 3, ""),
        case(1, heads(3, 1, 80), 40, 4, ""),
        case(1, heads(1, 1, 16), 0, 1, ""),
        // Several tiles of keys in a part.
        case(1, heads(4, 1, 128), 150, 2, ""),
        case(2, heads(8, 1, 64), 260, 2, ",large"),
        // More parts than keys, and than lanes share.
        case(1, heads(2, 2, 256), 4, 9, ""),
        // Heads of two workgroups.
        case(2, heads(11, 1, 32), 70, 2, ""),
        case(3, heads(8, 2, 128), 33, 2, ""),
        case(1, heads(4, 1, 32), 20, 2, "").with(Poison::Zeros),
        case(1, heads(2, 1, 32), 20, 2, "").with(Poison::NaN),
        // Windows: of the new key only, within what is past, longer than all.
        case(2, heads(2, 1, 16).with_window(1), 3, 2, ""),
        case(1, heads(4, 1, 64).with_window(66), 130, 3, ""),
        case(1, heads(2, 1, 32).with_window(64), 3, 2, ""),
        case(1, heads(4, 2, 16).with_soft_cap(2.0), 70, 2, ""),
    ];
    for (kv, dim) in [(4, 64), (8, 128)] {
        let heads = heads(32, kv, dim);
        cases.push(case(1, heads, 4095, 64, "").only(in_use(32 / kv as u32)).bench());
    }
    cases
}
