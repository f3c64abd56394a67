//! `attention/tiled`: what [`attention/causal`](super::causal) computes, for many tokens of a sequence at once: 32 share
//! what is read of the keys and values (Dao et al. 2022), in register tiles as the backward kernels have. Also the log-sum-exp
//! of each token's and head's scores, which the backward pass needs: it costs 4 bytes for each.

use super::backward::{Params, grad_variants, own_tokens, owners, variant, variants};
use super::causal::{self, Look, random_layer};
use super::lse_delta::{log_sum_exp, scores_reference};
use super::{Attention, Seen, coop, on_matrix_units, sum_slack};
use crate::kernels::prelude::*;

/// From so many tokens of a sequence on, a tile of 32 is taken: a third of it filled, by reckoning, not by measurement.
pub(super) const MANY: usize = 12;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/tiled",
    source: include_str!("../../../shaders/attention/tiled.wgsl"),
    bindings: BINDINGS,
    parameters: Params::LAYOUT,
    variants: forward_variants,
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tiles as usize * p.heads as usize)
    },
    cost,
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// Results in the type of activations, and of f16 in f32, too.
fn forward_variants() -> Vec<Variant> {
    let mut variants = variants();
    let wide = grad_variants().into_iter();
    variants.extend(wide.filter(|variant| variant.activation == DType::F16));
    variants
}

pub(super) const BINDINGS: &[Binding] = &[
    binding("query", Access::Read, Element::Activation),
    binding("key", Access::Read, Element::Activation),
    binding("value", Access::Read, Element::Activation),
    binding("past", Access::Read, Element::Is(DType::U32)),
    binding("places", Access::Read, Element::Is(DType::U32)),
    binding("result", Access::ReadWrite, Element::Output),
    binding("lse_delta", Access::ReadWrite, Element::Is(DType::F32)),
];

pub(super) fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let owners = owners(args.variant) as f64;
    // Of a window, a tile sees its tokens' keys before it, too.
    let window = f64::from(p.window) + owners;
    let held = f64::from(p.capacity) / f64::from(1 + p.mask.causal);
    let keys = f64::from(p.tiles) * owners * f64::min(held, window);
    let operations = 4.0 * keys * f64::from(p.heads) * f64::from(p.head_dim);
    Cost::new(operations, operations / 8.0 / owners)
}

/// As [`forward`](super::causal::forward), where the shader takes such heads and so many tokens are worth it; `None` elsewhere.
pub(super) fn tiled(
    device: &Device,
    query: &Tensor,
    (key, value): (&Tensor, &Tensor),
    seen: Seen<'_>,
    heads: Attention,
    capacity: usize,
    output: DType,
) -> Result<Option<(Tensor, Tensor)>> {
    let sequences = seen.ends.len();
    let each = query.shape()[0] / sequences;
    if each < MANY || !heads.dim.is_multiple_of(4) {
        return Ok(None);
    }
    let dtype = query.dtype();
    let (kernel, variant) = match coop::choose(device, &coop::KERNEL, (dtype, output), heads.dim) {
        Some(variant) => (&coop::KERNEL, variant),
        None => (&KERNEL, Variant { output, ..variant(dtype, heads.dim) }),
    };
    let owners = owners(&variant);
    let result = device.allocate(output, query.shape(), "attention")?;
    let known = device.allocate(DType::F32, &[sequences * each, heads.query, 2], "log-sum-exps")?;
    let tiles = sequences * each.div_ceil(owners);
    let keys = capacity.min(heads.keys(capacity) + owners);
    let operations = 4.0 * (owners * heads.query * heads.dim * keys) as f64;
    let step = ((device.call_limit().operations / operations) as usize).max(1);
    for start in (0..tiles).step_by(step) {
        let params =
            Params::new(&heads, (sequences, each, capacity), (start, step.min(tiles - start)));
        let params = Params { mask: seen.mask(), ..params };
        let tensors = [query, key, value, seen.ends, seen.places(), &result, &known];
        device.call(kernel, variant.clone(), &params, &tensors)?;
    }
    Ok(Some((result, known)))
}

/// The tiles' tokens, each a window of one token that the other kernel takes.
pub(super) fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut expected = Expected::exact(args.tensors[5].to_f64());
    let window = |(sequence, place): (usize, usize)| causal::Params {
        tokens: 1,
        token_start: (sequence * p.tokens_per_sequence as usize + place) as u32,
        tokens_per_sequence: p.tokens_per_sequence,
        sequences: p.sequences,
        heads: p.heads,
        kv_heads: p.kv_heads,
        head_dim: p.head_dim,
        capacity: p.capacity,
        scale: p.scale,
        window: p.window,
        soft_cap: p.soft_cap,
        mask: p.mask,
    };
    let windows: Vec<_> = own_tokens(args).into_iter().map(window).collect();
    causal::expect(args, &windows, &mut expected);
    vec![expected, expected_lse(args, &p)]
}

/// The log-sum-exps of the tiles' tokens; what stands beside them stays.
fn expected_lse(args: &Args<'_>, p: &Params) -> Expected {
    let (query, key) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let (past, words) = (args.tensors[3].u32s(), args.tensors[4].u32s());
    let rows: Vec<_> = own_tokens(args)
        .into_iter()
        .flat_map(|token| (0..p.heads as usize).map(move |head| (token, head)))
        .collect();
    let lines: Vec<(usize, (f64, f64))> = rows
        .into_par_iter()
        .map(|(token, head)| {
            let slack = sum_slack(on_matrix_units(args.variant));
            let sees = (past[token.0], words);
            let scores = scores_reference(p, (&query, &key), sees, (token, head), slack);
            (2 * p.row(token, head), log_sum_exp(&scores))
        })
        .collect();
    let mut expected = Expected::exact(args.tensors[6].to_f64());
    for (start, line) in lines {
        expected.put(start, [line]);
    }
    expected
}

fn case(sequences: usize, each: usize, heads: Attention, past: u32, note: &'static str) -> Case {
    looking(sequences, each, heads, (past, Look::CAUSAL), note)
}

fn looking(
    sequences: usize,
    each: usize,
    heads: Attention,
    look: (u32, Look),
    note: &'static str,
) -> Case {
    let case = causal::looking(sequences, each, heads, look, note);
    let make = case.make;
    let made = move |variant: &Variant| {
        let data = make(variant);
        let p: causal::Params = bytemuck::pod_read_unaligned(&data.parameters);
        let tiles = sequences * each.div_ceil(owners(variant));
        let skip = usize::from(note == ",part");
        let sizes = (sequences, each, p.capacity as usize);
        let params = Params::new(&heads, sizes, (skip, tiles - 2 * skip));
        let params = Params { mask: p.mask, ..params };
        let mut tensors = data.tensors;
        let known = Random::new(14).values(sequences * each * heads.query * 2, 1.0);
        let shape = [sequences * each, heads.query, 2];
        tensors.push(HostTensor::from_f32(DType::F32, &shape, &known));
        params.case(tensors)
    };
    let case = Case::new(case.label, made);
    match heads.dim {
        ..=64 => case,
        65..=128 => case.only(|variant| variant.constant("DIM") >= 128),
        _ => case.only(|variant| variant.constant("DIM") >= 256),
    }
}

pub(super) fn random(sizes: &Sizes) -> Case {
    let kv = sizes.between(2, 1, 3);
    let heads = Attention::new(kv * sizes.between(3, 1, 4), kv, 4 * sizes.between(4, 1, 64));
    let (heads, look) = random_layer(sizes, heads);
    let (sequences, each) = (sizes.between(0, 1, 3), sizes.between(1, 1, 60));
    looking(sequences, each, heads, (sizes.between(5, 0, 200) as u32, look), "")
}

pub(super) fn cases() -> Vec<Case> {
    let heads = Attention::new;
    vec![
        case(2, 21, heads(4, 2, 16), 0, ""),
        case(2, 16, heads(9, 3, 64), 130, ""),
        looking(2, 37, heads(3, 3, 64), (0, Look::all(75).biased(12)), ""),
        looking(1, 70, heads(2, 2, 12), (3, Look::CAUSAL.from(5).biased(16)), ""),
        case(1, 1, heads(1, 1, 4), 0, ""),
        case(1, 33, heads(4, 2, 128), 61, ""),
        // Matrix units are trusted by the cases up to here.
        case(1, 70, heads(3, 1, 12), 0, ""),
        // All keys of other texts, of other numbers in each: of no whole four, of more than a tile, one, few for many tokens.
        looking(3, 20, heads(4, 2, 16), (0, Look::all(130)), ""),
        looking(3, 33, heads(2, 1, 128), (0, Look::all(66)), ""),
        looking(2, 70, heads(2, 2, 32), (0, Look::all(2).biased(6)), ",part"),
        looking(1, 13, heads(1, 1, 256), (0, Look::all(67).from(3)), ""),
        looking(1, 40, heads(2, 2, 8), (0, Look::all(40).biased(32)), "").with(Poison::NaN),
        looking(2, 18, heads(4, 2, 32), (0, Look::all(64).biased(4)), ",large"),
        looking(1, 45, heads(2, 1, 8).with_window(9), (2, Look::CAUSAL.biased(6)), ""),
        looking(1, 30, heads(4, 2, 16).with_soft_cap(2.0), (0, Look::all(50).biased(6)), ""),
        case(2, 19, heads(2, 1, 100), 5, ""),
        case(1, 37, heads(2, 1, 256), 27, ""),
        case(2, 70, heads(2, 1, 8), 3, ",part"),
        case(1, 200, heads(4, 2, 60), 20, ",part"),
        case(1, 18, heads(2, 1, 32), 60, ",large"),
        // Few keys, the first of which may be far above the others.
        case(1, 18, heads(16, 2, 32), 0, ",large"),
        case(1, 18, heads(2, 1, 96), 60, "").with(Poison::Zeros),
        case(1, 17, heads(2, 1, 8), 3, "").with(Poison::NaN),
        case(1, 35, heads(2, 1, 8), 2, ",nan value"),
        case(1, 35, heads(2, 1, 8), 66, ",nan value"),
        // Windows: of one key, of no whole four, of less than a tile, across what is past, longer than all.
        case(2, 40, heads(2, 1, 8).with_window(1), 3, ""),
        case(1, 140, heads(4, 2, 16).with_window(6), 0, ""),
        case(1, 150, heads(4, 1, 256).with_window(50), 0, ""),
        case(2, 70, heads(3, 1, 64).with_window(67), 130, ""),
        case(1, 33, heads(2, 1, 8).with_window(400), 5, ""),
        case(1, 45, heads(2, 1, 8).with_window(5), 2, ",nan value"),
        case(1, 70, heads(4, 2, 16).with_soft_cap(2.0), 20, ""),
        case(1, 18, heads(16, 2, 32).with_soft_cap(2.0), 0, ",large"),
        case(1, 17, heads(2, 1, 8).with_soft_cap(2.0), 3, "").with(Poison::NaN),
        case(2, 90, heads(4, 1, 128).with_window(33).with_soft_cap(1.0), 70, ""),
        case(1, 2048, heads(32, 4, 64), 0, "").bench(),
        case(4, 512, heads(32, 4, 64), 0, "").bench(),
        case(4, 512, heads(9, 3, 64), 0, "").bench(),
        looking(4, 512, heads(16, 16, 64), (0, Look::all(512).biased(32)), "").bench(),
        case(1, 2048, heads(4, 1, 256).with_window(512), 0, "").bench(),
        case(1, 512, heads(32, 8, 128), 0, "").bench(),
    ]
}
