//! `dequantize/rows`: a packed matrix as plain f32, exact.

use glam::UVec3;

use crate::kernels::matrix::{Chunk, Layout};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{Scale, SuperBlock, WHOLE_ROW, WeightFormat};

params! {
    struct Params {
        rows: u32,
        columns: u32,
        layout: Layout,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "dequantize/rows",
    source: include_str!("../../../shaders/dequantize/rows.wgsl"),
    bindings: &[
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: weights::one_per_type,
    groups,
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.rows) * f64::from(p.columns);
        let words = f64::from(p.rows) * f64::from(p.layout.code_words + p.layout.scale_words);
        Cost::new(2.0 * values, 4.0 * (values + words))
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The rows of one chunk of a matrix, f32 of (rows, columns).
pub fn rows(
    device: &Device,
    chunk: &Chunk,
    format: WeightFormat,
    columns: usize,
) -> Result<Tensor> {
    let result = device.allocate(DType::F32, &[chunk.rows, columns], "dequantized rows")?;
    let layout = Layout::new(format, columns);
    let params = Params { rows: chunk.rows as u32, columns: columns as u32, layout };
    device.call(
        &KERNEL,
        weights::variant(format.ty),
        &params,
        &[&chunk.codes, &chunk.scales, &result],
    )?;
    Ok(result)
}

fn groups(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    fold((p.rows as usize * p.columns.div_ceil(4) as usize).div_ceil(64))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let packed = weights::packed(args, 0, 1, p.rows as usize, p.columns as usize, p.layout);
    let mut values = Vec::with_capacity(packed.rows * packed.columns);
    for row in 0..packed.rows {
        for column in 0..packed.columns {
            values.push(f64::from(packed.value(row, column)));
        }
    }
    vec![Expected::exact(values)]
}

fn case(rows: usize, columns: usize, group: u32, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},group={group}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(10);
        let mut packed = weights::random(&mut random, variant, rows, columns, group);
        if note == ",zeros" {
            packed.codes.fill(0);
            packed.scales.fill(0);
        }
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            layout: Layout::new(packed.format, columns),
        };
        let [codes, scales] = weights::host(&packed);
        params.case(vec![codes, scales, HostTensor::zeros(DType::F32, &[rows, columns])])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 40), sizes.between(1, 1, 400), sizes.group(2), "")
}

fn cases() -> Vec<Case> {
    vec![
        every_code(),
        case(7, 97, WHOLE_ROW, ""),
        case(5, 100, 16, ""),
        case(3, 576, 128, ""),
        case(2, 64, 32, ",zeros"),
    ]
}

/// Every code of up to 16 bits once per group of 16 columns or more, under scales from subnormal to large.
fn every_code() -> Case {
    // f16 bits: the smallest subnormal, the smallest normal, 1, and others; the second number likewise.
    const F16: [u16; 8] = [0x0001, 0x0400, 0x3c00, 0x1234, 0x83ff, 0xb555, 0x7800, 0x0000];
    const SECONDS: [u16; 3] = [0x3c00, 0x4800, 0x0003];
    Case::new("every code", |variant: &Variant| {
        let ty = variant.weight.expect("a variant of a kernel with a weight names its type");
        let codes = 1usize << ty.bits.min(16);
        let (rows, columns) = (if ty.has_scales() { 8 } else { 1 }, codes.max(32));
        // Of super-blocks a whole one, and a part of another.
        let columns = if ty.super_block().is_some() { 288 } else { columns };
        let mut random = Random::new(14);
        let mut packed = weights::random(&mut random, variant, rows, columns, 16);
        packed.codes.fill(0);
        packed.scales.fill(0);
        for row in 0..rows {
            if ty.scale == Scale::TwoLevel {
                packed.set_row_scale(row, 0.37);
            }
            for index in 0..packed.format.super_blocks_per_row(columns) {
                packed.set_super_scales(row, index, F16[row], SECONDS[(row + index) % 3]);
            }
            for group in 0..packed.format.groups_per_row(columns) {
                // Exponents whose values are normal numbers of f32: a device may take others for zero.
                let power = [118, 119, 60, 127, 128, 180, 100, 5][row];
                // E4M3: zero, the smallest, the smallest normal, 1, the largest, NaN, and others.
                let byte = [0x00, 0x01, 0x08, 0x38, 0x7e, 0x7f, 0x35, 0x41][row];
                // Integers of a group: 0, the largest, and what their bits hold between; signed ones of both signs.
                let integer = |of: SuperBlock, place: usize| {
                    let most = (1u16 << of.bits) - 1;
                    [0, most, most / 2, 1, most / 3, most / 2 + 1, most - 1, 5][place % 8]
                };
                let (scale, second) = match ty.scale {
                    Scale::PowerOfTwo => (power, 0),
                    Scale::TwoLevel => (byte, 0),
                    Scale::SuperOffset(of) => (integer(of, row + group), integer(of, 3 * group)),
                    Scale::SuperSymmetric(of) => {
                        (integer(of, row + group).wrapping_sub(1 << (of.bits - 1)), 0)
                    }
                    _ => (F16[row], SECONDS[(row + group) % 3]),
                };
                packed.set_group(row, group, scale, second);
            }
            for column in 0..columns {
                // Each code is drawn in turn; of a pattern, two columns further on in each group, which meet every place.
                if let Some(pattern) = ty.sparsity
                    && (column + column / pattern.of as usize) as u32 % pattern.of >= pattern.kept
                {
                    continue;
                }
                let code = if ty.bits == 32 {
                    (column as f32 - 7.5).to_bits()
                } else {
                    (column % codes) as u32
                };
                packed.set_code(row, column, code);
            }
        }
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            layout: Layout::new(packed.format, columns),
        };
        let [codes, scales] = weights::host(&packed);
        params.case(vec![codes, scales, HostTensor::zeros(DType::F32, &[rows, columns])])
    })
}
