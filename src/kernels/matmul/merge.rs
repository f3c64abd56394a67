//! `matmul/merge`: the parts of a product that was split along its columns: their sum, and what becomes of it.

use super::cases::Special;
use super::reference::Finish;
use super::{EPILOGUE_BIAS, FUSED_GATES, Params};
use crate::kernels::activation::Activation;
use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::tensor::WeightFormat;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/merge",
    source: include_str!("../../../shaders/matmul/merge.wgsl"),
    bindings: BINDINGS,
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || [DType::F32, DType::F16].map(|output| Variant::typed(DType::F32, output)).to_vec(),
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.tokens as usize * p.rows as usize).div_ceil(64))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let results = f64::from(p.tokens) * f64::from(p.rows);
        let written = args.tensors[2].dtype.size() as f64;
        Cost::new(f64::from(p.splits) * results, (4.0 * f64::from(p.splits) + written) * results)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

const BINDINGS: &[Binding] = &[
    binding("sums", Access::Read, Element::Is(DType::F32)),
    binding("bias", Access::Read, Element::Is(DType::F32)),
    binding("result", Access::ReadWrite, Element::Output),
];

/// The variant for results of a type.
pub fn variant(output: DType) -> Variant {
    Variant::typed(DType::F32, output)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, tokens, splits) = (p.rows as usize, p.tokens as usize, p.splits as usize);
    let (sums, bias) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let mut expected = Expected::exact(args.tensors[2].to_f64());
    let finish = Finish {
        epilogue: p.epilogue,
        output: args.variant.output,
        relative: gamma(splits + 1),
        lost: 0.0,
    };
    for index in 0..tokens * rows {
        let parts = (0..splits).map(|part| sums[part * tokens * rows + index]);
        let (sum, magnitude) = parts
            .fold((0.0, 0.0), |(sum, magnitude), part: f64| (sum + part, magnitude + part.abs()));
        let place = p.out_offset as usize + index % rows;
        let at = p.place(index / rows, place);
        let bias = if p.epilogue & EPILOGUE_BIAS > 0 { bias[place] } else { 0.0 };
        (expected.values[at], expected.bounds[at]) =
            finish.value(sum, magnitude, bias, expected.values[at]);
    }
    vec![expected]
}

fn case(tokens: usize, rows: usize, splits: usize, special: Special) -> Case {
    let label = format!("tokens={tokens},rows={rows},splits={splits}{}", special.label());
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(23);
        let (start, offset, stride) =
            if special == Special::Part { (2, 3, rows + 5) } else { (0, 0, rows) };
        let (second, third) = special.starts(rows);
        let epilogue = special.epilogue();
        let sums = random.values(splits * tokens * rows, 1.0);
        let params = Params {
            rows: rows as u32,
            row_start: 0,
            columns: 0,
            tokens: tokens as u32,
            token_start: 0,
            result_start: start as u32,
            out_stride: stride as u32,
            out_offset: offset as u32,
            epilogue,
            splits: splits as u32,
            second: second as u32,
            third: third as u32,
            layout: Layout::new(WeightFormat::f32(), 1),
        };
        let old = random.values((start + tokens + start) * stride, 2.0);
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[splits, tokens, rows], &sums),
            HostTensor::from_f32(DType::F32, &[stride], &random.values(stride, 1.0)),
            HostTensor::from_f32(variant.output, &[old.len() / stride, stride], &old),
        ])
    })
}

/// A case of that shape, for measurements.
pub fn shaped(tokens: usize, rows: usize, splits: usize) -> Case {
    case(tokens, rows, splits, Special::Nothing)
}

fn random(sizes: &Sizes) -> Case {
    let gate = Special::Gate(Activation::Silu);
    let all =
        [Special::Nothing, Special::Part, Special::Bias, Special::Add, gate, Special::ApartBiased];
    let (tokens, rows) = (sizes.between(0, 1, 20), sizes.between(1, 1, 70));
    let special = all[sizes.between(3, 0, 5)];
    case(tokens, rows, sizes.between(2, 1, 6), special)
}

fn cases() -> Vec<Case> {
    let with = |special| case(2, 33, 2, special);
    let mut cases = vec![
        shaped(1, 1, 1),
        shaped(3, 70, 4),
        case(2, 33, 3, Special::Part),
        with(Special::Bias),
        with(Special::Add),
        with(Special::ApartBiased),
        with(Special::Nothing).with(Poison::NaN),
        with(Special::Nothing).with(Poison::Infinity),
        shaped(64, 4096, 4).bench(),
    ];
    cases.extend(FUSED_GATES.map(Special::Gate).map(with));
    cases
}
