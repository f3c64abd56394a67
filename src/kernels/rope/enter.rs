//! `rope/enter`: what [`rope/rotate`](super::rotate) does to queries, and to keys on their way into the cache, and
//! [`kv/append`](crate::kernels::kv::append) with values, in one call: of one token each of them is small.

use std::ops::Range;

use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        tokens_per_sequence: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        capacity: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "rope/enter",
    source: include_str!("../../../shaders/rope/enter.wgsl"),
    bindings: &[
        binding("query", Access::Read, Element::Activation),
        binding("key", Access::Read, Element::Activation),
        binding("value", Access::Read, Element::Activation),
        binding("rotations", Access::Read, Element::Is(DType::F32)),
        binding("past", Access::Read, Element::Is(DType::U32)),
        binding("rotated", Access::ReadWrite, Element::Output),
        binding("keys", Access::ReadWrite, Element::Output),
        binding("values", Access::ReadWrite, Element::Output),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let half = Variant::typed(DType::F16, DType::F16);
        vec![Variant::BASELINE, half]
    },
    groups: |args| {
        let p: Params = args.parameters();
        let lines = p.tokens as usize * (p.heads + 2 * p.kv_heads) as usize;
        fold((lines * (p.head_dim / 2) as usize).div_ceil(64))
    },
    cost: |args| {
        let values = (args.tensors[0].len() + 2 * args.tensors[1].len()) as f64;
        Cost::new(3.0 * values, 12.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Bindings that it takes: adapters of the lowest tier may have fewer.
pub const BINDINGS: u32 = 8;

/// Rotates `query`, (tokens, heads * head_dim), and returns it; rotates `key`, (tokens, kv_heads * head_dim), into the cache `keys`,
/// (sequences, capacity, kv_heads * head_dim), and copies `value` into `values`, all of one type. `past`: tokens each sequence
/// holds already.
pub fn enter(
    device: &Device,
    (query, key, value): (&Tensor, &Tensor, &Tensor),
    head_dim: usize,
    (rotations, past): (&Tensor, &Tensor),
    (keys, values): (&Tensor, &Tensor),
    capacity: usize,
) -> Result<Tensor> {
    let tokens = query.shape()[0];
    let rotated = device.allocate(query.dtype(), query.shape(), "rotated queries")?;
    let params = Params {
        tokens: tokens as u32,
        tokens_per_sequence: (tokens / past.len()) as u32,
        heads: (query.len() / tokens / head_dim) as u32,
        kv_heads: (key.len() / tokens / head_dim) as u32,
        head_dim: head_dim as u32,
        capacity: capacity as u32,
    };
    device.call(
        &KERNEL,
        Variant::typed(query.dtype(), query.dtype()),
        &params,
        &[query, key, value, rotations, past, &rotated, keys, values],
    )?;
    Ok(rotated)
}

/// Of every token its row in the cache, and the place of its rotations.
fn places(args: &Args<'_>) -> Vec<(usize, usize)> {
    let p: Params = args.parameters();
    let past = args.tensors[4].u32s();
    let place = |token: usize| {
        let each = p.tokens_per_sequence as usize;
        let position = past[token / each] as usize + token % each;
        (token / each * p.capacity as usize + position, position)
    };
    (0..p.tokens as usize).map(place).collect()
}

pub(in crate::kernels) fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (head_dim, half) = (p.head_dim as usize, p.head_dim as usize / 2);
    let mut expected: Vec<Expected> =
        [5, 6, 7].map(|binding| Expected::exact(args.tensors[binding].to_f64())).into();
    let rotated = |of: usize, line: usize, position: usize, heads: Range<usize>| {
        let mut found = vec![(0.0, 0.0); heads.len() * head_dim];
        for (own, head) in heads.enumerate() {
            for pair in 0..half {
                let source = (line * heads_of(&p, of) + head) * head_dim + pair;
                let (a, b) = (args.tensors[of].get(source), args.tensors[of].get(source + half));
                let turn = 2 * (position * half + pair);
                let (cos, sin) = (args.tensors[3].get(turn), args.tensors[3].get(turn + 1));
                for (at, value, size) in [
                    (pair, a * cos - b * sin, (a * cos).abs() + (b * sin).abs()),
                    (pair + half, b * cos + a * sin, (b * cos).abs() + (a * sin).abs()),
                ] {
                    let bound = 4.0 * U * size + storing(args.variant.output, value);
                    found[own * head_dim + at] = (value, bound);
                }
            }
        }
        found
    };
    for (token, (row, position)) in places(args).into_iter().enumerate() {
        let (heads, kv_heads) = (p.heads as usize, p.kv_heads as usize);
        let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
        expected[0].put(token * wide, rotated(0, token, position, 0..heads));
        expected[1].put(row * narrow, rotated(1, token, position, 0..kv_heads));
        let value = |at: usize| (args.tensors[2].get(token * narrow + at), 0.0);
        expected[2].put(row * narrow, (0..narrow).map(value));
    }
    expected
}

/// Heads of a token in the query (0) or the key (1).
fn heads_of(p: &Params, of: usize) -> usize {
    if of == 0 { p.heads as usize } else { p.kv_heads as usize }
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (head_dim, half) = (p.head_dim as usize, p.head_dim as usize / 2);
    let rotations = args.tensors[3].to_f32();
    for (token, (row, position)) in places(args).into_iter().enumerate() {
        let turns = &rotations[position * head_dim..(position + 1) * head_dim];
        for (of, line) in [(0, token), (1, row)] {
            let width = heads_of(&p, of) * head_dim;
            let mut values = args.tensors[of].load(token * width, width);
            for head in values.chunks_exact_mut(head_dim) {
                for (pair, turn) in turns.chunks_exact(2).enumerate() {
                    let (a, b) = (head[pair], head[pair + half]);
                    head[pair] = a * turn[0] - b * turn[1];
                    head[pair + half] = b * turn[0] + a * turn[1];
                }
            }
            outputs.store(of, line * width, &values);
        }
        let width = heads_of(&p, 1) * head_dim;
        outputs.store(2, row * width, &args.tensors[2].load(token * width, width));
    }
}

fn case(
    (sequences, each): (usize, usize),
    (heads, kv_heads, head_dim): (usize, usize, usize),
    room: usize,
    past: usize,
) -> Case {
    let label = format!(
        "sequences={sequences},tokens={each},heads={heads}/{kv_heads},head_dim={head_dim},room={room},past={past}"
    );
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(41);
        let tokens = sequences * each;
        // Each sequence holds a different number of tokens already.
        let capacity = past + sequences + each + room;
        let angles = random.values(capacity * head_dim / 2, 3.0);
        let rotations: Vec<f32> = angles.iter().flat_map(|a| [a.cos(), a.sin()]).collect();
        let held: Vec<u32> = (0..sequences).map(|s| (past + s) as u32).collect();
        let params = Params {
            tokens: tokens as u32,
            tokens_per_sequence: each as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            capacity: capacity as u32,
        };
        let mut values = |dtype: DType, rows: usize, heads: usize| {
            let shape = [rows, heads * head_dim];
            HostTensor::from_f32(dtype, &shape, &random.values(shape[0] * shape[1], 2.0))
        };
        let (act, out) = (variant.activation, variant.output);
        params.case(vec![
            values(act, tokens, heads),
            values(act, tokens, kv_heads),
            values(act, tokens, kv_heads),
            HostTensor::from_f32(DType::F32, &[capacity, head_dim], &rotations),
            HostTensor::from_u32(&[sequences], &held),
            values(out, tokens, heads),
            values(out, sequences * capacity, kv_heads),
            values(out, sequences * capacity, kv_heads),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let kv_heads = sizes.between(2, 1, 5);
    case(
        (sizes.between(0, 1, 4), sizes.between(1, 1, 20)),
        (kv_heads * sizes.between(3, 1, 4), kv_heads, 2 * sizes.between(4, 1, 64)),
        sizes.between(5, 0, 20),
        sizes.between(6, 0, 60),
    )
}

fn cases() -> Vec<Case> {
    vec![
        case((2, 3), (6, 3, 10), 1, 5),
        case((1, 1), (1, 1, 2), 0, 0),
        case((1, 1), (9, 3, 64), 40, 30),
        case((3, 33), (4, 2, 32), 0, 7),
        case((1, 1), (32, 8, 128), 0, 1000).bench(),
    ]
}
