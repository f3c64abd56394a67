//! `rope/rotate`: rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face's Llama.
//!
//! For a pair (a, b) = (x[i], x[i + head_dim/2]) at position p: (a cos - b sin, b cos + a sin), with the cosine and sine
//! of p * frequency_i from a table made on the CPU. Positions are what the sequence holds already plus the token's index.

use glam::UVec3;

use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        tokens_per_sequence: u32,
        heads: u32,
        head_dim: u32,
        capacity: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "rope/rotate",
    source: include_str!("../../../shaders/rope/rotate.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("rotations", Access::Read, Element::Is(DType::F32)),
        binding("past", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::ReadWrite, Element::Output),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let pairs = [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::F32, DType::F16)];
        pairs.map(|(from, to)| Variant::typed(from, to)).to_vec()
    },
    groups,
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(3.0 * values, 12.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Where rotated tokens go.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A new tensor of the input's shape, in that type: the input's, or f16.
    New(DType),
    /// A cache of (sequences, capacity, heads, head_dim), behind what each sequence holds.
    Cache(&'a Tensor, usize),
}

/// Rotates `x`, (tokens, heads, head_dim), by the positions that `past` (one count per sequence) and the tokens' order
/// give. Returns the new tensor, or a handle to the cache.
pub fn rotate(
    device: &Device,
    x: &Tensor,
    head_dim: usize,
    rotations: &Tensor,
    past: &Tensor,
    target: Target<'_>,
) -> Result<Tensor> {
    let tokens = x.shape()[0];
    let heads = x.len() / tokens / head_dim;
    let (result, capacity) = match target {
        Target::New(dtype) => (device.allocate(dtype, x.shape(), "rotated queries")?, 0),
        Target::Cache(cache, capacity) => (cache.clone(), capacity),
    };
    let params = Params {
        tokens: tokens as u32,
        tokens_per_sequence: (tokens / past.len()) as u32,
        heads: heads as u32,
        head_dim: head_dim as u32,
        capacity: capacity as u32,
    };
    device.call(
        &KERNEL,
        Variant::typed(x.dtype(), result.dtype()),
        &params,
        &[x, rotations, past, &result],
    )?;
    Ok(result)
}

fn groups(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    fold((p.tokens as usize * p.heads as usize * (p.head_dim / 2) as usize).div_ceil(64))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let half = head_dim / 2;
    let (x, rotations, past) = (args.tensors[0], args.tensors[1], args.tensors[2].u32s());
    let mut expected = Expected::exact(args.tensors[3].to_f64());
    for token in 0..p.tokens as usize {
        let (sequence, order) =
            (token / p.tokens_per_sequence as usize, token % p.tokens_per_sequence as usize);
        let position = past[sequence] as usize + order;
        let row = if p.capacity > 0 { sequence * p.capacity as usize + position } else { token };
        for head in 0..heads {
            for pair in 0..half {
                let source = (token * heads + head) * head_dim + pair;
                let (a, b) = (x.get(source), x.get(source + half));
                let (cos, sin) = (
                    rotations.get(2 * (position * half + pair)),
                    rotations.get(2 * (position * half + pair) + 1),
                );
                let place = (row * heads + head) * head_dim + pair;
                for (at, value, magnitude) in [
                    (place, a * cos - b * sin, (a * cos).abs() + (b * sin).abs()),
                    (place + half, b * cos + a * sin, (b * cos).abs() + (a * sin).abs()),
                ] {
                    expected.values[at] = value;
                    expected.bounds[at] = 4.0 * U * magnitude + storing(args.variant.output, value);
                }
            }
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (heads, head_dim) = (p.heads as usize, p.head_dim as usize);
    let (half, width) = (head_dim / 2, heads * head_dim);
    let (rotations, past) = (args.tensors[1].to_f32(), args.tensors[2].u32s());
    for token in 0..p.tokens as usize {
        let (sequence, order) =
            (token / p.tokens_per_sequence as usize, token % p.tokens_per_sequence as usize);
        let position = past[sequence] as usize + order;
        let row = if p.capacity > 0 { sequence * p.capacity as usize + position } else { token };
        let mut line = args.tensors[0].load(token * width, width);
        let turns = &rotations[position * head_dim..(position + 1) * head_dim];
        for head in line.chunks_exact_mut(head_dim) {
            for (pair, turn) in turns.chunks_exact(2).enumerate() {
                let (a, b) = (head[pair], head[pair + half]);
                head[pair] = a * turn[0] - b * turn[1];
                head[pair + half] = b * turn[0] + a * turn[1];
            }
        }
        outputs.store(0, row * width, &line);
    }
}

fn case(
    sequences: usize,
    each: usize,
    heads: usize,
    head_dim: usize,
    capacity: usize,
    past: u32,
) -> Case {
    let label = format!(
        "sequences={sequences},tokens={each},heads={heads},head_dim={head_dim},capacity={capacity},past={past}"
    );
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(4);
        let tokens = sequences * each;
        let positions = past as usize + each + sequences;
        let angles = random.values(positions * head_dim / 2, 3.0);
        let rotations: Vec<f32> = angles.iter().flat_map(|a| [a.cos(), a.sin()]).collect();
        // Each sequence holds a different number of tokens already.
        let past: Vec<u32> = (0..sequences as u32).map(|s| past + s).collect();
        let rows = if capacity > 0 { sequences * capacity } else { tokens };
        let params = Params {
            tokens: tokens as u32,
            tokens_per_sequence: each as u32,
            heads: heads as u32,
            head_dim: head_dim as u32,
            capacity: capacity as u32,
        };
        let width = heads * head_dim;
        params.case(vec![
            HostTensor::from_f32(
                variant.activation,
                &[tokens, width],
                &random.values(tokens * width, 2.0),
            ),
            HostTensor::from_f32(DType::F32, &[positions, head_dim], &rotations),
            HostTensor::from_u32(&[sequences], &past),
            HostTensor::from_f32(variant.output, &[rows, width], &random.values(rows * width, 1.0)),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (each, past) = (sizes.between(1, 1, 40), sizes.between(2, 0, 60));
    // A cache holds all that is written into it; without one the tokens stand in their own places.
    let capacity = sizes.between(3, 0, 1) * (each + past + 8 + sizes.between(4, 0, 20));
    case(
        sizes.between(0, 1, 4),
        each,
        sizes.between(5, 1, 9),
        2 * sizes.between(6, 1, 64),
        capacity,
        past as u32,
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(2, 3, 3, 10, 0, 5),
        case(2, 3, 3, 10, 11, 5),
        case(1, 1, 1, 2, 0, 0),
        case(1, 65, 9, 64, 65, 0),
        case(1, 2049, 32, 64, 0, 0),
        case(4, 512, 32, 128, 0, 0).bench(),
    ]
}
