//! `quantize/absmax`: f16 scales of symmetric groups.
//!
//! `signed_max` 0: scale = max|w| * factor, with factor 1 / (2^(bits-1) - 1) for the grid `absmax-symmetric`.
//! `signed_max` 1: scale = w_extreme * factor, with factor -1 / 2^(bits-1): GGUF's symmetric types, where the value of
//! largest magnitude falls on the lowest code, whatever its sign.

use half::f16;

use super::SHAPES;
use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        group_columns: u32,
        scale_words: u32,
        /// 0: scale = largest magnitude * factor. 1: scale = the signed value of largest magnitude * factor.
        signed_max: u32,
        factor: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/absmax",
    source: include_str!("../../../shaders/quantize/absmax.wgsl"),
    bindings: &[
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("scales", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| fold(args.tensors[1].len().div_ceil(64)),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(2.0 * values, 4.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// The scale words of a weight, f32 of (rows, columns).
pub fn absmax(
    device: &Device,
    weight: &Tensor,
    group_columns: usize,
    scale_words: usize,
    signed_max: bool,
    factor: f32,
) -> Result<Tensor> {
    let (rows, columns) = (weight.shape()[0], weight.shape()[1]);
    let scales = device.allocate(DType::U32, &[rows, scale_words], "scales")?;
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        group_columns: group_columns as u32,
        scale_words: scale_words as u32,
        signed_max: u32::from(signed_max),
        factor,
    };
    device.call(&KERNEL, Variant::BASELINE, &params, &[weight, &scales])?;
    Ok(scales)
}

fn words(args: &Args<'_>) -> Vec<u32> {
    let p: Params = args.parameters();
    let weight = args.tensors[0].to_f32();
    let mut words = vec![0u32; (p.rows * p.scale_words) as usize];
    let lines = weight.par_chunks_exact(p.columns as usize);
    words.par_chunks_exact_mut(p.scale_words as usize).zip(lines).for_each(|(words, line)| {
        for (index, group) in line.chunks(p.group_columns as usize).enumerate() {
            let extreme = group
                .iter()
                .fold(0.0f32, |most, value| if value.abs() > most.abs() { *value } else { most });
            let extreme = if p.signed_max == 1 { extreme } else { extreme.abs() };
            let bits = u32::from(f16::from_f32(extreme * p.factor).to_bits());
            words[index / 2] |= bits << (16 * (index % 2));
        }
    });
    words
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    vec![Expected::exact(words(args).into_iter().map(f64::from).collect())]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    outputs.words(0).copy_from_slice(&words(args));
}

fn case(rows: usize, columns: usize, group: usize, signed_max: u32, bits: u32) -> Case {
    let label =
        format!("rows={rows},columns={columns},group={group},signed={signed_max},bits={bits}");
    Case::new(label, move |_: &Variant| {
        let weight = super::weights(&mut Random::new(11), rows, columns);
        let half_range = (1u32 << (bits - 1)) as f32;
        let scale_words = columns.div_ceil(group).div_ceil(2);
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            group_columns: group as u32,
            scale_words: scale_words as u32,
            signed_max,
            factor: if signed_max == 1 { -1.0 / half_range } else { 1.0 / (half_range - 1.0) },
        };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &weight),
            HostTensor::zeros(DType::U32, &[rows, scale_words]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let signed_max = sizes.between(0, 0, 1) as u32;
    case(
        sizes.between(1, 1, 60),
        sizes.between(2, 1, 400),
        16 << sizes.between(3, 0, 4),
        signed_max,
        sizes.between(4, 2 - signed_max as usize, 8) as u32,
    )
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, columns, group) in SHAPES {
        for (signed_max, bits) in [(0u32, 4), (1, 4), (0, 2), (1, 1), (0, 8)] {
            cases.push(case(rows, columns, group, signed_max, bits));
        }
    }
    cases.push(Case::new("every f16 rounding", |_: &Variant| every_rounding()));
    cases.push(Case::new("overflow", |_: &Variant| {
        let far = [65_504.0, 65_519.0, 65_520.0, 65_536.0, 1e9, f32::INFINITY];
        let values: Vec<f32> = far.into_iter().flat_map(|value| [value, -value]).collect();
        one_each(&values, 1)
    }));
    cases
}

/// Groups of one value and a factor of 1: each scale is the rounding of one magnitude to f16. The magnitudes are every
/// finite f16, the f32 numbers just below and above it, and the midpoint to the next f16 with its own neighbours.
fn every_rounding() -> CaseData {
    let mut values = Vec::new();
    for bits in 0..0x7bffu16 {
        let (value, next) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
        for centre in [value, (value + next) / 2.0] {
            let bits = centre.to_bits();
            values.extend([bits.saturating_sub(1), bits, bits + 1].map(f32::from_bits));
        }
    }
    one_each(&values, 0)
}

fn one_each(values: &[f32], signed_max: u32) -> CaseData {
    let columns = values.len();
    let params = Params {
        rows: 1,
        columns: columns as u32,
        group_columns: 1,
        scale_words: columns.div_ceil(2) as u32,
        signed_max,
        factor: 1.0,
    };
    params.case(vec![
        HostTensor::from_f32(DType::F32, &[1, columns], values),
        HostTensor::zeros(DType::U32, &[1, columns.div_ceil(2)]),
    ])
}
