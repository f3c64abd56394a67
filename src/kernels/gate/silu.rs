//! `gate/silu`: the gated activation of a Llama feed-forward (Shazeer 2020): result = gate / (1 + exp(-gate)) * up.

use bytemuck::{Pod, Zeroable};
use half::f16;
use rayon::prelude::*;

use crate::compare::Expected;
use crate::device::{
    Args, Call, Case, CaseData, Device, Element, HostTensor, Kernel, Outputs, Random, Sizes,
    Tensor, Variant, binding, fold,
};
use crate::error::Result;
use crate::gpu::{Access, Cost};
use crate::kernels::bounds::{U, storing};
use crate::tensor::DType;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    count: u32,
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "gate/silu",
    source: include_str!("../../../shaders/gate/silu.wgsl"),
    bindings: &[
        binding("gate", Access::Read, Element::Activation),
        binding("up", Access::Read, Element::Activation),
        binding("result", Access::Write, Element::Output),
    ],
    parameter_bytes: size_of::<Params>(),
    overrides: &[("WORKGROUP", 128.0)],
    variants: || {
        let pairs = [
            (DType::F32, DType::F32),
            (DType::F32, DType::F16),
            (DType::F16, DType::F16),
        ];
        let variant = |(activation, output)| Variant {
            activation,
            output,
            ..Variant::BASELINE
        };
        pairs.map(variant).to_vec()
    },
    groups: |args| fold(args.tensors[0].len().div_ceil(4 * 128)),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost {
            operations: 8.0 * values,
            bytes: values
                * (2 * args.tensors[0].dtype.size() + args.tensors[2].dtype.size()) as f64,
        }
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
};

/// silu(gate) * up, element by element, in type `output`: that of the two, or f16.
pub fn silu(device: &Device, gate: &Tensor, up: &Tensor, output: DType) -> Result<Tensor> {
    let result = device.allocate(output, gate.shape(), "gated activations")?;
    let params = Params {
        count: gate.len() as u32,
    };
    device.run(&Call {
        kernel: &KERNEL,
        variant: Variant {
            activation: gate.dtype(),
            output,
            ..Variant::BASELINE
        },
        parameters: bytemuck::bytes_of(&params),
        tensors: &[gate, up, &result],
    })?;
    Ok(result)
}

/// silu(gate) = gate / (1 + exp(-gate)), and what a device may be off by: exp is off by (3 + 2 |x|) ulp where it matters
/// beside the 1, a division by 2.5 ulp. WGSL promises nothing of a division by more than 2^126, whose reciprocal is
/// subnormal: such a result, below 1e-36, may be zero.
pub(crate) fn silu_with_bound(gate: f64) -> (f64, f64) {
    let divisor = 1.0 + (-gate).exp();
    let value = gate / divisor;
    let relative = if divisor > f64::powi(2.0, 126) {
        1.0
    } else {
        (16.0 + 6.0 * gate.abs().min(100.0)) * U
    };
    (value, relative * value.abs())
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let (gate, up) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let element = |(gate, up): (&f64, &f64)| {
        let (silu, bound) = silu_with_bound(*gate);
        let value = silu * up;
        (
            value,
            bound * up.abs() + storing(args.variant.output, value),
        )
    };
    let (values, bounds) = gate.par_iter().zip(&up).map(element).unzip();
    vec![Expected { values, bounds }]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let (mut gate, up) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    gate.par_iter_mut()
        .with_min_len(1 << 12)
        .zip(&up)
        .for_each(|(gate, up)| *gate = *gate / (1.0 + (-*gate).exp()) * up);
    outputs.store(0, 0, &gate);
}

fn case(count: usize, scale: f32, note: &'static str) -> Case {
    let label = format!("count={count},scale={scale}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(7);
        let mut gate = random.values(count, scale);
        match note {
            ",zeros" => gate.fill(0.0),
            ",infinity" => gate[0] = f32::INFINITY,
            ",nan" => gate[0] = f32::NAN,
            _ => {}
        }
        let dtype = variant.activation;
        CaseData {
            parameters: bytemuck::bytes_of(&Params {
                count: count as u32,
            })
            .to_vec(),
            tensors: vec![
                HostTensor::from_f32(dtype, &[count], &gate),
                HostTensor::from_f32(dtype, &[count], &random.values(count, 2.0)),
                HostTensor::zeros(variant.output, &[count]),
            ],
        }
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 70) * sizes.between(1, 1, 70),
        [0.1, 4.0, 80.0][sizes.between(2, 0, 2)],
        "",
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1.0, ""),
        case(1001, 4.0, ""),
        case(254, 80.0, ""),
        case(255, 80.0, ""),
        case(64, 1.0, ",zeros"),
        case(3, 1.0, ",infinity"),
        case(3, 1.0, ",nan"),
        case(4_200_001, 2.0, "").only(|variant| variant.activation == DType::F32),
        case(2048 * 14_336, 2.0, "").bench(),
        // Every f16 there is, NaN and infinities among them.
        Case::new("every f16", |variant: &Variant| CaseData {
            parameters: bytemuck::bytes_of(&Params { count: 65_536 }).to_vec(),
            tensors: vec![
                every_half(variant.activation),
                HostTensor::from_f32(variant.activation, &[65_536], &[1.0; 65_536]),
                HostTensor::zeros(variant.output, &[65_536]),
            ],
        }),
    ]
}

/// All 65 536 f16 values in order of their bits, as `dtype`.
fn every_half(dtype: DType) -> HostTensor {
    let values: Vec<f32> = (0..=u16::MAX)
        .map(|bits| f16::from_bits(bits).to_f32())
        .collect();
    HostTensor::from_f32(dtype, &[values.len()], &values)
}
