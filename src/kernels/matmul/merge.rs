//! `matmul/merge`: the parts of a product that was split along its columns: their sum, and what becomes of it.

use super::cases::epilogue;
use super::reference::Finish;
use super::{EPILOGUE_BIAS, Params};
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
    variants: || {
        [DType::F32, DType::F16]
            .map(|output| Variant {
                output,
                ..Variant::BASELINE
            })
            .to_vec()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.tokens as usize * p.rows as usize).div_ceil(64))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let results = f64::from(p.tokens) * f64::from(p.rows);
        let written = args.tensors[2].dtype.size() as f64;
        Cost {
            operations: f64::from(p.splits) * results,
            bytes: (4.0 * f64::from(p.splits) + written) * results,
        }
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
    Variant {
        output,
        ..Variant::BASELINE
    }
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
        let (sum, magnitude) = parts.fold((0.0, 0.0), |(sum, magnitude), part: f64| {
            (sum + part, magnitude + part.abs())
        });
        let place = p.out_offset as usize + index % rows;
        let at = (p.result_start as usize + index / rows) * p.out_stride as usize + place;
        let bias = if p.epilogue & EPILOGUE_BIAS > 0 {
            bias[place]
        } else {
            0.0
        };
        (expected.values[at], expected.bounds[at]) =
            finish.value(sum, magnitude, bias, expected.values[at]);
    }
    vec![expected]
}

fn case(tokens: usize, rows: usize, splits: usize, note: &'static str) -> Case {
    let label = format!("tokens={tokens},rows={rows},splits={splits}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(23);
        let (start, offset, stride) = if note == ",window" {
            (2, 3, rows + 5)
        } else {
            (0, 0, rows)
        };
        let epilogue = epilogue(note);
        let mut sums = random.values(splits * tokens * rows, 1.0);
        match note {
            ",nan" => sums[rows - 1] = f32::NAN,
            ",infinity" => sums[0] = f32::INFINITY,
            _ => {}
        }
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
            layout: Layout::new(WeightFormat::f32(), 1),
        };
        let old = random.values((start + tokens + start) * stride, 2.0);
        CaseData {
            parameters: bytemuck::bytes_of(&params).to_vec(),
            tensors: vec![
                HostTensor::from_f32(DType::F32, &[splits, tokens, rows], &sums),
                HostTensor::from_f32(DType::F32, &[stride], &random.values(stride, 1.0)),
                HostTensor::from_f32(variant.output, &[old.len() / stride, stride], &old),
            ],
        }
    })
}

/// A case of that shape, for measurements.
pub fn shaped(tokens: usize, rows: usize, splits: usize) -> Case {
    case(tokens, rows, splits, "")
}

fn random(sizes: &Sizes) -> Case {
    let note = ["", ",window", ",bias", ",add", ",gate"][sizes.between(3, 0, 4)];
    let (tokens, rows) = (sizes.between(0, 1, 20), sizes.between(1, 1, 70));
    case(tokens, rows, sizes.between(2, 1, 6), note)
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1, 1, ""),
        case(3, 70, 4, ""),
        case(2, 33, 3, ",window"),
        case(2, 33, 2, ",bias"),
        case(2, 33, 2, ",add"),
        case(2, 33, 2, ",gate"),
        case(2, 33, 2, ",gate,gelu_tanh"),
        case(2, 33, 2, ",gate,gelu"),
        case(2, 33, 2, ",nan"),
        case(2, 33, 2, ",infinity"),
        case(64, 4096, 4, "").bench(),
    ]
}
