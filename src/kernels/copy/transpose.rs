//! `copy/transpose`: a packed matrix with rows and columns exchanged, as plain numbers: what makes a backward product one of
//! the forward kernels' own.

use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{BLOCK, WHOLE_ROW, WeightFormat};

/// Rows and columns of one workgroup's tile, as in the shader.
const TILE: (usize, usize) = (BLOCK, 64);

params! {
    struct Params {
        rows: u32,
        columns: u32,
        /// Elements of a row of the result.
        stride: u32,
        layout: Layout,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "copy/transpose",
    source: include_str!("../../../shaders/copy/transpose.wgsl"),
    bindings: &[
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let typed = weights::one_per_type().into_iter();
        let both = |variant: Variant| {
            let half = Variant { output: DType::F16, ..variant.clone() };
            [variant, half]
        };
        typed.flat_map(both).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        let down = (p.stride as usize).div_ceil(TILE.0);
        fold(down * (p.columns as usize).div_ceil(TILE.1))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let words = f64::from(p.rows) * f64::from(p.layout.code_words + p.layout.scale_words);
        let result = f64::from(p.columns) * f64::from(p.stride);
        Cost::new(0.0, 4.0 * words + args.tensors[2].dtype.size() as f64 * result)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// `[codes, scales]` of `rows` rows of a format and `columns`, transposed: (columns, `rows` to whole blocks of 32) of
/// `dtype`, f32 or f16, zeros in the padding.
pub fn transpose(
    device: &Device,
    [codes, scales]: [&Tensor; 2],
    format: WeightFormat,
    (rows, columns): (usize, usize),
    dtype: DType,
) -> Result<Tensor> {
    let stride = rows.next_multiple_of(BLOCK);
    let result = device.allocate(dtype, &[columns, stride], "a transposed matrix")?;
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        stride: stride as u32,
        layout: Layout::new(format, columns),
    };
    device.call(
        &KERNEL,
        Variant { output: dtype, ..weights::variant(format.ty) },
        &params,
        &[codes, scales, &result],
    )?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, columns, stride) = (p.rows as usize, p.columns as usize, p.stride as usize);
    let packed = weights::packed(args, 0, 1, rows, columns, p.layout);
    let mut expected = Expected::exact(vec![0.0; columns * stride]);
    let output = args.tensors[2].dtype;
    for row in 0..rows {
        for column in 0..columns {
            let (value, at) = (f64::from(packed.value(row, column)), column * stride + row);
            expected.values[at] = value;
            if output == DType::F16 {
                expected.bounds[at] = storing(output, value);
            }
        }
    }
    vec![expected]
}

fn case(rows: usize, columns: usize, group: u32, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},group={group}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(31);
        // Values beyond the rows must not show in the padding.
        let behind = if note == ",part" { 5 } else { 0 };
        let packed = weights::random(&mut random, variant, rows + behind, columns, group);
        let stride = rows.next_multiple_of(BLOCK);
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            stride: stride as u32,
            layout: Layout::new(packed.format, columns),
        };
        let [codes, scales] = weights::host(&packed);
        params.case(vec![codes, scales, HostTensor::zeros(variant.output, &[columns, stride])])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (rows, columns) = (sizes.between(0, 1, 100), sizes.between(1, 1, 200));
    case(rows, columns, sizes.group(2), "")
}

fn cases() -> Vec<Case> {
    let timed = |variant: &Variant| {
        let weight = variant.weight.map_or("", |weight| weight.name);
        ["f32", "f16", "uint4m"].contains(&weight)
    };
    vec![
        case(33, 97, WHOLE_ROW, ""),
        case(64, 128, 32, ""),
        case(1, 1, 16, ""),
        case(31, 65, 16, ""),
        case(29, 64, 32, ",part"),
        case(14_336, 4096, 32, "").bench().only(timed),
    ]
}
