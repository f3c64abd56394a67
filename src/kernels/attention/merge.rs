//! `attention/merge`: the parts of attention that was [split](super::split) over the keys, put together: with m the highest of
//! the parts' highest scores m_i, sum(exp(m_i - m) sums_i) / sum(exp(m_i - m) total_i).

pub(in crate::kernels) use super::split::MAX_SPLITS;
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        token_start: u32,
        heads: u32,
        head_dim: u32,
        splits: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/merge",
    source: include_str!("../../../shaders/attention/merge.wgsl"),
    bindings: &[
        binding("parts", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Output),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || {
        let of = |output| {
            let variant = Variant { constants: CONSTANTS, ..Variant::typed(DType::F32, output) };
            [false, true].map(|subgroups| variant.clone().with_subgroups(subgroups))
        };
        [DType::F32, DType::F16].into_iter().flat_map(of).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tokens as usize * p.heads as usize)
    },
    cost: |args| {
        let p: Params = args.parameters();
        let results = f64::from(p.tokens) * f64::from(p.heads) * f64::from(p.head_dim);
        let written = args.tensors[1].dtype.size() as f64;
        Cost::new(
            2.0 * f64::from(p.splits) * results,
            (4.0 * f64::from(p.splits) + written) * results,
        )
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

const CONSTANTS: &[(&str, u32)] = &[("MAX_SPLITS", MAX_SPLITS as u32)];

/// Attention, (tokens, heads * head_dim) of type `output`, from its parts, f32 (tokens, heads, splits, head_dim + 2).
pub fn merge(device: &Device, parts: &Tensor, output: DType) -> Result<Tensor> {
    let [tokens, heads, splits, pitch] = parts.shape()[..] else {
        unreachable!("parts have four dimensions")
    };
    let head_dim = pitch - 2;
    let result = device.allocate(output, &[tokens, heads * head_dim], "attention")?;
    let params = Params {
        tokens: tokens as u32,
        token_start: 0,
        heads: heads as u32,
        head_dim: head_dim as u32,
        splits: splits as u32,
    };
    let variant = Variant { constants: CONSTANTS, ..Variant::typed(DType::F32, output) };
    let variant = variant.with_subgroups(device.capabilities().subgroups);
    device.call(&KERNEL, variant, &params, &[parts, &result])?;
    Ok(result)
}

/// The first number of a row's parts, and where its result stands.
fn rows(p: &Params) -> impl Iterator<Item = (usize, usize)> {
    let (head_dim, splits) = (p.head_dim as usize, p.splits as usize);
    let first = p.token_start as usize * p.heads as usize;
    let rows = first..first + p.tokens as usize * p.heads as usize;
    rows.map(move |row| (row * splits * (head_dim + 2), row * head_dim))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (head_dim, splits) = (p.head_dim as usize, p.splits as usize);
    let parts = args.tensors[0].to_f64();
    let mut expected = Expected::exact(args.tensors[1].to_f64());
    for (base, place) in rows(&p) {
        let row = &parts[base..][..splits * (head_dim + 2)];
        expected.put(place, row_reference(row, head_dim, args.variant.output));
    }
    vec![expected]
}

/// What the parts of a head of a token, (splits, head_dim + 2), come to, stored as `output`, with bounds.
pub(in crate::kernels) fn row_reference(
    parts: &[f64],
    head_dim: usize,
    output: DType,
) -> Vec<(f64, f64)> {
    let parts: Vec<&[f64]> = parts.chunks_exact(head_dim + 2).collect();
    let scores = parts.iter().map(|part| part[head_dim]);
    let highest = scores.clone().fold(f64::from(NOTHING), f64::max);
    let factors: Vec<f64> = scores.clone().map(|score| (score - highest).exp()).collect();
    let total: f64 =
        factors.iter().zip(&parts).map(|(factor, part)| factor * part[head_dim + 1]).sum();
    // exp is off by (3 + 2 |x|) ulp, once in the sums and once in the total.
    let range = scores.map(|score| highest - score).fold(0.0, f64::max).min(100.0);
    let relative = 2.0 * ((8.0 + 6.0 * range) * U + gamma(parts.len() + 4));
    let of_column = |column: usize| {
        let products = factors.iter().zip(&parts).map(|(factor, part)| factor * part[column]);
        let (sum, magnitude) = products.fold((0.0, 0.0), |(sum, magnitude), product: f64| {
            (sum + product, magnitude + product.abs())
        });
        let (value, magnitude) = (sum / total, magnitude / total.abs());
        (value, relative * magnitude + storing(output, value))
    };
    (0..head_dim).map(of_column).collect()
}

/// The highest score of no keys.
pub(in crate::kernels) const NOTHING: f32 = -3.0e38;

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (head_dim, splits) = (p.head_dim as usize, p.splits as usize);
    let parts = args.tensors[0].to_f32();
    for (base, place) in rows(&p) {
        let part = |index: usize| &parts[base + index * (head_dim + 2)..][..head_dim + 2];
        let highest = (0..splits).map(|index| part(index)[head_dim]).fold(NOTHING, f32::max);
        let (mut sums, mut total) = (vec![0.0f32; head_dim], 0.0f32);
        for index in 0..splits {
            let factor = (part(index)[head_dim] - highest).exp();
            total += factor * part(index)[head_dim + 1];
            sums.iter_mut().zip(part(index)).for_each(|(sum, value)| *sum += factor * value);
        }
        sums.iter_mut().for_each(|sum| *sum /= total);
        outputs.store(0, place, &sums);
    }
}

fn case(
    tokens: usize,
    (heads, head_dim): (usize, usize),
    splits: usize,
    note: &'static str,
) -> Case {
    let label = format!("tokens={tokens},heads={heads},head_dim={head_dim},splits={splits}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(33);
        let rows = tokens * heads;
        let mut parts = random.values(rows * splits * (head_dim + 2), 1.0);
        for (index, part) in parts.chunks_exact_mut(head_dim + 2).enumerate() {
            part[head_dim] *= 9.0;
            part[head_dim + 1] += 1.5;
            if note == ",large" {
                part[head_dim] *= 40.0;
            }
            // Parts without keys.
            if note == ",empty" && index % splits > splits / 2 {
                part.fill(0.0);
                part[head_dim] = NOTHING;
            }
        }
        let skip = usize::from(note == ",part");
        let params = Params {
            tokens: (tokens - 2 * skip) as u32,
            token_start: skip as u32,
            heads: heads as u32,
            head_dim: head_dim as u32,
            splits: splits as u32,
        };
        let old = random.values(rows * head_dim, 1.0);
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[tokens, heads, splits, head_dim + 2], &parts),
            HostTensor::from_f32(variant.output, &[tokens, heads, head_dim], &old),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let heads = (sizes.between(1, 1, 9), 8 * sizes.between(2, 1, 32));
    case(sizes.between(0, 1, 4), heads, sizes.between(3, 1, MAX_SPLITS), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, (1, 8), 1, ""),
        case(3, (9, 64), 5, ""),
        case(1, (2, 256), MAX_SPLITS, ""),
        case(2, (3, 80), 33, ",empty"),
        case(4, (2, 128), 4, ",part"),
        case(2, (2, 64), 6, ",large"),
        case(1, (2, 64), 3, "").with(Poison::NaN),
        case(1, (32, 128), 64, "").bench(),
        case(1, (32, 64), 64, "").bench(),
    ]
}
