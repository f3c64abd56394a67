//! `quantize/scale_grad`: the gradient of a packed matrix's scales, with its codes held, from that of its weights: for
//! w = s u + m with u = code - 2^(bits-1), code - z, code or level(code) (see [`Scale`]) of a group,
//! ds = sum(dw u) and dm = sum(dw): what trains scales behind fixed codes (Jacob et al. 2017, arXiv 1712.05877, as the scales
//! of PEQA, Kim et al. 2023, arXiv 2305.14152, section 3.2).
//!
//! Of [`Scale::TwoLevel`], w = (t s) level(code), the group's s counts as a real number and the row's t as given.

use glam::UVec3;

use crate::error::Error;
use crate::kernels::matrix::{Layout, Matrix};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{Scale, WEIGHT_TYPES, WHOLE_ROW, WeightFormat, WeightType};

params! {
    struct Params {
        rows: u32,
        columns: u32,
        /// The first of the rows, among all of the gradient.
        row_start: u32,
        groups: u32,
        group_columns: u32,
        /// Invocations that share a group: a power of two.
        shares: u32,
        layout: Layout,
    }
}

const WORKGROUP: usize = 64;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/scale_grad",
    source: include_str!("../../../shaders/quantize/scale_grad.wgsl"),
    bindings: &[
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("gradient", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
        binding("offsets", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", WORKGROUP as f64)],
    variants: || {
        let trainable = |ty: &&&'static WeightType| has_real_scales(ty);
        WEIGHT_TYPES.iter().filter(trainable).map(|ty| weights::variant(ty)).collect()
    },
    groups,
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.rows) * f64::from(p.columns);
        let words = f64::from(p.rows) * f64::from(p.layout.code_words + p.layout.scale_words);
        Cost::new(6.0 * values, 4.0 * (values + words))
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Whether a type's scales are real numbers, that a gradient can move: not powers of two, not the integers that groups of a
/// super-block have, and not none.
pub fn has_real_scales(ty: &WeightType) -> bool {
    !matches!(ty.scale, Scale::None | Scale::PowerOfTwo) && ty.super_block().is_none()
}

/// Refuses formats whose scales have no gradient.
pub(super) fn expect_real_scales(format: WeightFormat) -> Result<()> {
    if has_real_scales(format.ty) {
        return Ok(());
    }
    Err(Error::Argument {
        argument: "format of a weight whose scales are trained".into(),
        expected: "scales that are real numbers, not powers of two, scales of super-blocks or none"
            .into(),
        found: format.label(),
    })
}

/// From the gradient of a matrix's weights, f32 (rows, columns): that of its scales, f32 (rows, groups), and of its offsets,
/// where its type has them.
///
/// Errors: the format has no scales, or powers of two.
pub fn scale_grad(
    device: &Device,
    gradient: &Tensor,
    weight: &Matrix,
) -> Result<(Tensor, Option<Tensor>)> {
    let (format, columns) = (weight.format(), weight.columns());
    expect_real_scales(format)?;
    assert_eq!(gradient.len(), weight.rows() * columns, "a gradient for each weight");
    let shape = [weight.rows(), format.groups_per_row(columns)];
    let has_offsets = format.ty.scale == Scale::Offset;
    let result = device.allocate(DType::F32, &shape, "a gradient of scales")?;
    let shape = if has_offsets { &shape[..] } else { &[1] };
    let offsets = device.allocate(DType::F32, shape, "a gradient of offsets")?;
    for chunk in weight.chunks() {
        let params = Params::new((chunk.rows, columns), chunk.start, format);
        let tensors = [&chunk.codes, &chunk.scales, gradient, &result, &offsets];
        device.call(&KERNEL, weights::variant(format.ty), &params, &tensors)?;
    }
    Ok((result, has_offsets.then_some(offsets)))
}

impl Params {
    fn new((rows, columns): (usize, usize), row_start: usize, format: WeightFormat) -> Self {
        let group_columns = format.group_columns(columns);
        let shares = group_columns.min(columns).div_ceil(4).next_power_of_two();
        Self {
            rows: rows as u32,
            columns: columns as u32,
            row_start: row_start as u32,
            groups: format.groups_per_row(columns) as u32,
            group_columns: group_columns as u32,
            shares: shares.min(WORKGROUP) as u32,
            layout: Layout::new(format, columns),
        }
    }
}

fn groups(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    fold((p.rows as usize * p.groups as usize).div_ceil(WORKGROUP / p.shares as usize))
}

/// What the scale of each weight is multiplied by, row by row, and how far from exact a device's is, in itself.
fn units(args: &Args<'_>) -> (Vec<f64>, f64) {
    let p: Params = args.parameters();
    let (rows, columns) = (p.rows as usize, p.columns as usize);
    let packed = weights::packed(args, 0, 1, rows, columns, p.layout);
    let ty = packed.format.ty;
    let row = |row: usize| {
        let first = packed.scales[row * packed.format.scale_words_per_row(columns)];
        let whole = f64::from(f32::from_bits(first));
        let packed = &packed;
        (0..columns).map(move |column| {
            let level = f64::from(ty.level(packed.code(row, column)));
            match ty.scale {
                Scale::Symmetric => level - f64::from(1 << (ty.bits - 1)),
                Scale::ZeroPoint => {
                    level - f64::from(packed.grid(row, column / p.group_columns as usize).1)
                }
                Scale::TwoLevel => whole * level,
                _ => level,
            }
        })
    };
    let units = (0..rows).into_par_iter().flat_map_iter(row).collect();
    (units, if ty.scale == Scale::TwoLevel { U } else { 0.0 })
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, group_columns) = (p.columns as usize, p.group_columns as usize);
    let (units, unit_off) = units(args);
    let exact = |binding: usize| Expected::exact(args.tensors[binding].to_f64());
    let (mut result, mut offsets) = (exact(3), exact(4));
    let sum = |terms: Vec<f64>| {
        let value: f64 = terms.iter().sum();
        let magnitude: f64 = terms.iter().map(|term| term.abs()).sum();
        let lost = terms.len() as f64 * DType::F32.underflow();
        let relative = gamma(terms.len() + 2) + unit_off;
        (value, relative * magnitude + lost + storing(DType::F32, value))
    };
    for row in 0..p.rows as usize {
        for group in 0..p.groups as usize {
            let (start, end) = (group * group_columns, columns.min((group + 1) * group_columns));
            let all_rows = (p.row_start as usize + row) * columns;
            let slope = |column: usize| args.tensors[2].get(all_rows + column);
            let place = (p.row_start as usize + row) * p.groups as usize + group;
            let term = |column: usize| slope(column) * units[row * columns + column];
            result.put(place, [sum((start..end).map(term).collect())]);
            if args.variant.weight.is_some_and(|ty| ty.scale == Scale::Offset) {
                offsets.put(place, [sum((start..end).map(slope).collect())]);
            }
        }
    }
    vec![result, offsets]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (columns, group_columns) = (p.columns as usize, p.group_columns as usize);
    let (units, _) = units(args);
    let slopes = args.tensors[2].load(p.row_start as usize * columns, units.len());
    let rows = slopes.par_chunks(columns).zip(units.par_chunks(columns));
    let sums: Vec<[f32; 2]> = rows
        .flat_map_iter(|(slopes, units)| {
            let groups = slopes.chunks(group_columns).zip(units.chunks(group_columns));
            groups.map(|(slopes, units)| {
                let slopes = slopes.iter().map(|slope| f64::from(*slope));
                let products = slopes.clone().zip(units).map(|(slope, unit)| slope * unit);
                [products.sum::<f64>() as f32, slopes.sum::<f64>() as f32]
            })
        })
        .collect();
    let start = (p.row_start * p.groups) as usize;
    let of_scales: Vec<f32> = sums.iter().map(|sums| sums[0]).collect();
    outputs.store(0, start, &of_scales);
    if args.variant.weight.is_some_and(|ty| ty.scale == Scale::Offset) {
        let of_offsets: Vec<f32> = sums.iter().map(|sums| sums[1]).collect();
        outputs.store(1, start, &of_offsets);
    }
}

/// A chunk of `rows` behind `before` others.
fn case(rows: usize, before: usize, columns: usize, group: u32) -> Case {
    let label = format!("rows={rows},before={before},columns={columns},group={group}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(69);
        let packed = weights::random(&mut random, variant, rows, columns, group);
        let params = Params::new((rows, columns), before, packed.format);
        let [codes, scales] = weights::host(&packed);
        let all = before + rows + 1;
        let gradient = random.values(all * columns, 1.0);
        let groups = packed.format.groups_per_row(columns);
        let earlier = random.values(all * groups, 1.0);
        let has_offsets = packed.format.ty.scale == Scale::Offset;
        let offsets = if has_offsets { earlier.len() } else { 1 };
        params.case(vec![
            codes,
            scales,
            HostTensor::from_f32(DType::F32, &[all, columns], &gradient),
            HostTensor::from_f32(DType::F32, &[all, groups], &earlier),
            HostTensor::from_f32(DType::F32, &[offsets], &earlier[..offsets]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let before = sizes.between(3, 0, 3);
    case(sizes.between(0, 1, 40), before, sizes.between(1, 1, 400), sizes.group(2))
}

fn cases() -> Vec<Case> {
    vec![
        case(7, 0, 97, WHOLE_ROW),
        case(5, 2, 100, 16),
        case(3, 1, 576, 128),
        case(1, 0, 1, WHOLE_ROW),
        case(2, 0, 64, 32).poisoned(2, Poison::Zeros),
        case(2, 0, 64, 32).poisoned(2, Poison::NaN),
        // More groups than one dimension has workgroups, for one type.
        case(8201, 0, 33, WHOLE_ROW).only(|variant| is_type(variant, "int4")),
        case(4096, 0, 4096, 32).only(|variant| is_type(variant, "uint4m")).bench(),
        case(4096, 0, 4096, 32).only(|variant| is_type(variant, "nf4")).bench(),
    ]
}

fn is_type(variant: &Variant, name: &str) -> bool {
    variant.weight.is_some_and(|ty| ty.name == name)
}
