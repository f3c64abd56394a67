//! `quantize/inputs`: inputs of linear layers rounded to eight bits, and what those stand for, so that any product takes them.
//!
//! result[r, c] = the nearest of n s, n a number of an [`InputType`], s a scale that is given, or max_c |x[r, c]| / the largest n. Scales
//! and numbers are the same bits on every device. A row with a number that is not finite is NaN.

use crate::kernels::prelude::*;
use crate::tensor::InputType;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        /// 0: integers. 1: floats.
        float: u32,
        /// 0: each row has its own.
        scale: f32,
        /// What a row's largest magnitude is multiplied by to be its scale.
        share: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/inputs",
    source: include_str!("../../../shaders/quantize/inputs.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    variants: || {
        let of =
            |dtype| [false, true].map(|wide| Variant::typed(dtype, dtype).with_subgroups(wide));
        [DType::F32, DType::F16].map(of).concat()
    },
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(20.0 * values, 2.0 * args.tensors[0].dtype.size() as f64 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// How the inputs of a linear layer are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InputRounding {
    /// To what numbers.
    pub ty: InputType,
    /// Times what; `None`: each token's own.
    pub scale: Option<f32>,
}

/// The rows of `x`, f32 or f16 (tokens, columns), rounded, in a new tensor.
pub fn inputs(device: &Device, x: &Tensor, columns: usize, how: InputRounding) -> Result<Tensor> {
    let result = device.allocate(x.dtype(), x.shape(), "rounded inputs")?;
    let params = Params::new(x.len() / columns, columns, how);
    let variant = Variant::typed(x.dtype(), x.dtype());
    let variant = variant.with_subgroups(device.capabilities().subgroups);
    device.call(&KERNEL, variant, &params, &[x, &result])?;
    Ok(result)
}

impl Params {
    fn new(rows: usize, columns: usize, InputRounding { ty, scale }: InputRounding) -> Self {
        Self {
            rows: rows as u32,
            columns: columns as u32,
            float: u32::from(ty == InputType::Fp8E4m3),
            scale: scale.unwrap_or(0.0),
            share: ty.share(),
        }
    }
}

/// Rows of activations, rounded by the scales of those of the call.
fn rounded(args: &Args<'_>, mut rows: Vec<f32>) -> Vec<f32> {
    let p: Params = args.parameters();
    let (ty, columns) = (InputType::ALL[p.float as usize], p.columns as usize);
    let x = args.tensors[0].to_f32();
    rows.par_chunks_mut(columns).zip(x.par_chunks(columns)).for_each(|(line, x)| {
        if x.iter().any(|value| !value.is_finite()) {
            line.fill(f32::NAN);
            return;
        }
        let largest = x.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let scale = if p.scale == 0.0 { largest * p.share } else { p.scale };
        line.iter_mut().for_each(|value| *value = ty.nearest(*value, scale));
    });
    rows
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut expected = Expected::default();
    // A product and a difference may be rounded as one: then what stands as near as that on both sides may become either.
    let exact = p.scale.to_bits() & 0x7f_ffff == 0 && p.scale != 0.0;
    let ends = |slack: f32| -> Vec<f32> {
        let moved = args.tensors[0].to_f32().into_iter().map(|value| value * (1.0 + slack));
        rounded(args, moved.collect())
    };
    let slack = if exact { 0.0 } else { 4.0 * U as f32 };
    let [low, high] = [-slack, slack].map(ends);
    let values = rounded(args, args.tensors[0].to_f32());
    for (value, (low, high)) in values.into_iter().zip(low.into_iter().zip(high)) {
        let doubt = if low == high { 0.0 } else { f64::from((high - low).abs()) };
        let value = f64::from(value);
        let stored =
            if args.variant.output == DType::F16 { storing(DType::F16, value) } else { 0.0 };
        expected.push(value, if value.is_nan() { 0.0 } else { doubt + stored });
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    outputs.store(0, 0, &rounded(args, args.tensors[0].to_f32()));
}

fn case((rows, columns): (usize, usize), ty: InputType, scale: Option<f32>) -> Case {
    let label = format!("rows={rows},columns={columns},type={},scale={scale:?}", ty.name());
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(91);
        let mut x = vec![0.0; rows * columns];
        for line in x.chunks_mut(columns) {
            let size = f32::powi(2.0, random.below(8) as i32 - 4);
            line.copy_from_slice(&random.values(columns, size));
            // An outlier, which leaves the others few steps.
            line[columns / 2] *= 8.0;
        }
        let params = Params::new(rows, columns, InputRounding { ty, scale });
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[rows, columns], &x),
            HostTensor::zeros(variant.output, &[rows, columns]),
        ])
    })
}

/// Every tie between two numbers, and the values next to it, by a scale of 1.
fn ties(ty: InputType) -> Case {
    Case::new(format!("ties,type={}", ty.name()), move |variant: &Variant| {
        let steps = (0..2100).flat_map(|half| {
            let value = match ty {
                InputType::Int8 => half as f32 / 2.0 - 140.0,
                InputType::Fp8E4m3 => half as f32 / 1024.0,
            };
            [value, f32::next_up(value), f32::next_down(value)]
        });
        let x: Vec<f32> = steps.flat_map(|value| [value, -value]).collect();
        let params = Params::new(1, x.len(), InputRounding { ty, scale: Some(1.0) });
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[1, x.len()], &x),
            HostTensor::zeros(variant.output, &[1, x.len()]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let scale = [None, Some(0.01), Some(0.5)][sizes.between(2, 0, 2)];
    let ty = InputType::ALL[sizes.between(3, 0, 1)];
    case((sizes.between(0, 1, 30), sizes.between(1, 1, 700)), ty, scale)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for ty in InputType::ALL {
        cases.extend([
            case((3, 97), ty, None),
            case((2, 576), ty, Some(0.02)),
            // Most are beyond the largest number.
            case((1, 130), ty, Some(1e-4)),
            case((2, 1), ty, None),
            case((1051, 3), ty, None),
            ties(ty),
            case((2, 64), ty, None).with(Poison::Zeros),
            case((2, 64), ty, None).with(Poison::Infinity),
            case((2, 64), ty, Some(0.1)).with(Poison::NaN),
            case((512, 4096), ty, None).bench(),
        ]);
    }
    cases
}
