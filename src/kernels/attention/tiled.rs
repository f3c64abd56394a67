//! `attention/tiled`: what [`attention/causal`](super::causal) computes, for many tokens of a sequence at once: 16 share
//! what is read of the keys and values (Dao et al. 2022).

use bytemuck::{Pod, Zeroable};

use super::causal::{self, Heads};
use crate::compare::Expected;
use crate::device::{Args, Call, Case, CaseData, Device, Kernel, Sizes, Tensor, Variant, fold};
use crate::error::Result;
use crate::gpu::Cost;
use crate::tensor::DType;

/// Tokens of a workgroup, as in the shader.
const TOKENS: usize = 16;

/// Heads of up to DIM columns, with KEYS keys at a time: what workgroup memory holds everywhere.
const SHAPES: [&[(&str, u32)]; 2] = [&[("DIM", 64), ("KEYS", 32)], &[("DIM", 128), ("KEYS", 8)]];

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    tiles: u32,
    tile_start: u32,
    tokens_per_sequence: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    scale: f32,
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/tiled",
    source: include_str!("../../../shaders/attention/tiled.wgsl"),
    bindings: causal::BINDINGS,
    parameter_bytes: size_of::<Params>(),
    overrides: &[],
    variants: || {
        let with = |dtype| {
            SHAPES.map(|constants| Variant {
                activation: dtype,
                output: dtype,
                constants,
                ..Variant::BASELINE
            })
        };
        [with(DType::F32), with(DType::F16)].concat()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tiles as usize * p.heads as usize)
    },
    cost: |args| {
        let p: Params = args.parameters();
        let keys = f64::from(p.tiles) * TOKENS as f64 * f64::from(p.capacity) / 2.0;
        let operations = 4.0 * keys * f64::from(p.heads) * f64::from(p.head_dim);
        Cost {
            operations,
            bytes: operations / 8.0 / TOKENS as f64,
        }
    },
    reference,
    cpu: None,
    cases,
    random,
};

/// The variant for such heads; `None` where the shader takes none.
fn variant(dtype: DType, heads: Heads) -> Option<Variant> {
    let fits = |constants: &&&[(&str, u32)]| heads.dim as u32 <= constants[0].1;
    let constants = SHAPES.iter().find(fits)?;
    heads.dim.is_multiple_of(4).then_some(Variant {
        activation: dtype,
        output: dtype,
        constants,
        ..Variant::BASELINE
    })
}

/// As [`causal`](super::causal::causal), where the shader takes such heads and so many tokens are worth it; `None` elsewhere.
pub(super) fn tiled(
    device: &Device,
    query: &Tensor,
    (key, value): (&Tensor, &Tensor),
    past: &Tensor,
    heads: Heads,
    capacity: usize,
) -> Result<Option<Tensor>> {
    let sequences = past.len();
    let each = query.shape()[0] / sequences;
    let Some(variant) = variant(query.dtype(), heads).filter(|_| each >= TOKENS / 2) else {
        return Ok(None);
    };
    let result = device.allocate(query.dtype(), query.shape(), "attention")?;
    let tiles = sequences * each.div_ceil(TOKENS);
    let operations = 4.0 * (TOKENS * heads.query * heads.dim * capacity) as f64;
    let step = ((device.call_limit().operations / operations) as usize).max(1);
    for start in (0..tiles).step_by(step) {
        let params = Params {
            tiles: step.min(tiles - start) as u32,
            tile_start: start as u32,
            tokens_per_sequence: each as u32,
            heads: heads.query as u32,
            kv_heads: heads.kv as u32,
            head_dim: heads.dim as u32,
            capacity: capacity as u32,
            scale: 1.0 / (heads.dim as f32).sqrt(),
        };
        device.run(&Call {
            kernel: &KERNEL,
            variant: variant.clone(),
            parameters: bytemuck::bytes_of(&params),
            tensors: &[query, key, value, past, &result],
        })?;
    }
    Ok(Some(result))
}

/// The tiles' tokens, as windows of tokens that the other kernel takes: each within one sequence.
fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let each = p.tokens_per_sequence as usize;
    let tiles = each.div_ceil(TOKENS);
    let mut expected = Expected::exact(args.tensors[4].to_f64());
    let range = p.tile_start as usize..(p.tile_start + p.tiles) as usize;
    let window = |tile: usize| {
        let first = tile % tiles * TOKENS;
        causal::Params {
            tokens: TOKENS.min(each - first) as u32,
            token_start: (tile / tiles * each + first) as u32,
            tokens_per_sequence: p.tokens_per_sequence,
            heads: p.heads,
            kv_heads: p.kv_heads,
            head_dim: p.head_dim,
            capacity: p.capacity,
            scale: p.scale,
        }
    };
    let windows: Vec<_> = range.map(window).collect();
    causal::expect(args, &windows, &mut expected);
    vec![expected]
}

fn case(sequences: usize, each: usize, heads: Heads, past: u32, note: &'static str) -> Case {
    let case = causal::case(sequences, each, heads, past, note);
    let make = case.make;
    let made = move |variant: &Variant| {
        let data = make(variant);
        let p: causal::Params = bytemuck::pod_read_unaligned(&data.parameters);
        let tiles = sequences * each.div_ceil(TOKENS);
        let skip = usize::from(note == ",window");
        let params = Params {
            tiles: (tiles - 2 * skip) as u32,
            tile_start: skip as u32,
            tokens_per_sequence: p.tokens_per_sequence,
            heads: p.heads,
            kv_heads: p.kv_heads,
            head_dim: p.head_dim,
            capacity: p.capacity,
            scale: p.scale,
        };
        CaseData {
            parameters: bytemuck::bytes_of(&params).to_vec(),
            ..data
        }
    };
    let case = Case::new(case.label, made);
    if heads.dim > 64 {
        case.only(|variant| variant.constant("DIM") == 128)
    } else {
        case
    }
}

fn random(sizes: &Sizes) -> Case {
    let kv = sizes.between(2, 1, 3);
    let heads = Heads {
        query: kv * sizes.between(3, 1, 4),
        kv,
        dim: 4 * sizes.between(4, 1, 32),
    };
    let (sequences, each) = (sizes.between(0, 1, 3), sizes.between(1, 1, 60));
    case(sequences, each, heads, sizes.between(5, 0, 200) as u32, "")
}

fn cases() -> Vec<Case> {
    let heads = |query, kv, dim| Heads { query, kv, dim };
    vec![
        case(2, 21, heads(4, 2, 16), 0, ""),
        case(2, 16, heads(9, 3, 64), 130, ""),
        case(1, 70, heads(3, 1, 12), 0, ""),
        case(1, 1, heads(1, 1, 4), 0, ""),
        case(1, 33, heads(4, 2, 128), 61, ""),
        case(2, 19, heads(2, 1, 100), 5, ""),
        case(2, 40, heads(2, 1, 8), 3, ",window"),
        case(1, 18, heads(2, 1, 32), 60, ",large"),
        // Few keys, the first of which may be far above the others.
        case(1, 18, heads(16, 2, 32), 0, ",large"),
        case(1, 18, heads(2, 1, 96), 60, ",zeros"),
        case(1, 17, heads(2, 1, 8), 3, ",nan"),
        case(4, 512, heads(9, 3, 64), 0, "").bench(),
        case(1, 512, heads(32, 8, 128), 0, "").bench(),
    ]
}
