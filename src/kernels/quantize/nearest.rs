//! `quantize/nearest`: the code whose level, times its group's scale, is nearest to each weight, for types whose codes are
//! levels (floats of few bits, codebooks). A tie goes to the lower code. Exact: every device finds the same codes.

use super::SHAPES;
use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{BLOCK, Packed, WEIGHT_TYPES, WHOLE_ROW, WeightFormat, WeightType};

params! {
    struct Params {
        rows: u32,
        columns: u32,
        layout: Layout,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/nearest",
    source: include_str!("../../../shaders/quantize/nearest.wgsl"),
    bindings: &[
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("codes", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let leveled =
            |ty: &&&WeightType| ty.has_scales() && !ty.is_affine() && ty.super_block().is_none();
        WEIGHT_TYPES.iter().filter(leveled).map(|ty| weights::variant(ty)).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.rows as usize * (p.columns as usize).div_ceil(BLOCK)).div_ceil(64))
    },
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        let levels = args.variant.weight.map_or(0, WeightType::codes);
        Cost::new(12.0 * f64::from(levels) * values, 5.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// The code words of a weight, f32 of (rows, columns), in a format whose scales are given.
pub fn nearest(
    device: &Device,
    weight: &Tensor,
    scales: &Tensor,
    format: WeightFormat,
) -> Result<Tensor> {
    let (rows, columns) = (weight.shape()[0], weight.shape()[1]);
    let layout = Layout::new(format, columns);
    let codes = device.allocate(DType::U32, &[rows, layout.code_words as usize], "codes")?;
    let params = Params { rows: rows as u32, columns: columns as u32, layout };
    device.call(&KERNEL, weights::variant(format.ty), &params, &[weight, scales, &codes])?;
    Ok(codes)
}

/// |value - scale * level|, in the order of the shader: products of 12-bit halves are exact.
fn distance(value: f32, scale: f32, level: f32) -> f32 {
    let halves = |value: f32| {
        let high = f32::from_bits(value.to_bits() & 0xffff_f000);
        (high, value - high)
    };
    let ((a, b), (c, d)) = (halves(scale), halves(level));
    (value - a * c - a * d - b * c - b * d).abs()
}

/// The nearest of some finite levels, given as (level, code) with rising codes.
fn best(value: f32, scale: f32, candidates: impl Iterator<Item = (f32, u32)>) -> u32 {
    let mut found = (f32::INFINITY, 0);
    for (level, code) in candidates {
        let away = distance(value, scale, level);
        if away < found.0 || (away == found.0 && code < found.1) {
            found = (away, code);
        }
    }
    found.1
}

fn encode(args: &Args<'_>, find: impl Fn(f32, f32) -> u32 + Sync) -> Vec<u32> {
    let p: Params = args.parameters();
    let (columns, scale_words) = (p.columns as usize, p.layout.scale_words as usize);
    let group_size = if p.layout.group_shift == 31 { WHOLE_ROW } else { 1 << p.layout.group_shift };
    let format = WeightFormat { ty: weight_type(args), group_size };
    let weight = args.tensors[0].to_f32();
    let line = |(row, line): (usize, &[f32])| {
        let mut packed = Packed::zeros(format, 1, columns);
        let scales = &args.tensors[1].words[row * scale_words..(row + 1) * scale_words];
        packed.scales.copy_from_slice(scales);
        let group_columns = format.group_columns(columns);
        for (column, value) in line.iter().enumerate() {
            let (scale, _) = packed.grid(0, column / group_columns);
            packed.set_code(0, column, find(*value, scale));
        }
        packed.codes
    };
    let lines: Vec<Vec<u32>> = weight.par_chunks_exact(columns).enumerate().map(line).collect();
    lines.concat()
}

fn weight_type(args: &Args<'_>) -> &'static WeightType {
    args.variant.weight.expect("a variant of a kernel with a weight names its type")
}

fn levels(ty: &WeightType) -> Vec<(f32, u32)> {
    let all = (0..ty.codes()).map(|code| (ty.level(code), code));
    all.filter(|(level, _)| level.is_finite()).collect()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    // Every level is tried: nothing is assumed about where the nearest is.
    let levels = levels(weight_type(args));
    let words = encode(args, |value, scale| best(value, scale, levels.iter().copied()));
    vec![Expected::exact(words.into_iter().map(f64::from).collect())]
}

/// A quotient of value and scale up to which f32 tells neighbouring levels apart; E5M2 goes to 57344.
const FAR: f32 = 6e4;

/// The finite levels of a type in rising order.
#[derive(Clone, Debug, PartialEq)]
pub struct Sorted(Vec<(f32, u32)>);

impl Sorted {
    /// Of a type whose codes are levels.
    pub fn new(ty: &WeightType) -> Self {
        let mut sorted = levels(ty);
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Self(sorted)
    }

    /// The levels.
    pub fn values(&self) -> impl Iterator<Item = f32> + '_ {
        self.0.iter().map(|(level, _)| *level)
    }

    /// The code of the level whose product with the scale is nearest to a value: what the kernel finds.
    pub fn code(&self, value: f32, scale: f32) -> u32 {
        let sorted = &self.0;
        let quotient = value / scale;
        if quotient.is_nan() || quotient.abs() > FAR {
            // Levels far below the precision of the value are all equally near.
            return best(value, scale, sorted.iter().copied());
        }
        // The quotient is off by an ulp at most: the nearest is among the neighbours, equal levels (0 and -0) included.
        let place = sorted.partition_point(|(level, _)| *level < quotient);
        let near = place.saturating_sub(3)..(place + 3).min(sorted.len());
        best(value, scale, sorted[near].iter().copied())
    }
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let sorted = Sorted::new(weight_type(args));
    let words = encode(args, |value, scale| sorted.code(value, scale));
    outputs.words(0).copy_from_slice(&words);
}

fn case((rows, columns, group): (usize, usize, usize), note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},group={group}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(15);
        let group = if group >= columns { WHOLE_ROW } else { group as u32 };
        let mut packed = weights::random(&mut random, variant, rows, columns, group);
        let mut weight = super::weights(&mut random, rows, columns);
        match note {
            ",zero scales" => packed.scales.fill(0),
            // The middles between levels, where the lower code wins, and the levels themselves.
            ",ties" => {
                let mut levels: Vec<f32> =
                    levels(packed.format.ty).iter().map(|(level, _)| *level).collect();
                levels.sort_by(f32::total_cmp);
                for (column, value) in weight.iter_mut().enumerate() {
                    let (scale, _) = packed.grid(0, column / 16);
                    let pair = &levels[column / 2 % (levels.len() - 1)..][..2];
                    let middle = 0.5 * (pair[0] + pair[1]);
                    *value = scale * if column % 2 == 0 { middle } else { pair[0] };
                }
            }
            _ => {}
        }
        packed.codes.fill(0);
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            layout: Layout::new(packed.format, columns),
        };
        let [codes, scales] = weights::host(&packed);
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &weight),
            scales,
            codes,
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let shape = (sizes.between(0, 1, 60), sizes.between(1, 1, 400), 16 << sizes.between(2, 0, 4));
    case(shape, "")
}

fn cases() -> Vec<Case> {
    let shapes = SHAPES.map(|shape| case(shape, ""));
    let noted = [case((2, 100, 32), ",zero scales"), case((1, 512, 16), ",ties")];
    shapes.into_iter().chain(noted).collect()
}
