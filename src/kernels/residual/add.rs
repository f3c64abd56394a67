//! `residual/add`: adds a branch to the residual stream, residual += branch.
//!
//! The stream stays in f32 whatever the activations are: it sums every layer's output, and some models carry values in
//! it that f16 does not hold.

use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "residual/add",
    source: include_str!("../../../shaders/residual/add.wgsl"),
    bindings: &[
        binding("branch", Access::Read, Element::Activation),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    variants: || {
        vec![
            Variant::BASELINE,
            Variant {
                activation: DType::F16,
                ..Variant::BASELINE
            },
        ]
    },
    groups: |args| fold(args.tensors[0].len().div_ceil(4 * 128)),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost {
            operations: values,
            bytes: values * (8 + args.tensors[0].dtype.size()) as f64,
        }
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Adds `branch` to `residual` in place.
pub fn add(device: &Device, branch: &Tensor, residual: &Tensor) -> Result<()> {
    let params = Params {
        count: branch.len() as u32,
    };
    device.run(&Call {
        kernel: &KERNEL,
        variant: Variant {
            activation: branch.dtype(),
            ..Variant::BASELINE
        },
        parameters: bytemuck::bytes_of(&params),
        tensors: &[branch, residual],
    })
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let mut expected = Expected::default();
    for index in 0..args.tensors[0].len() {
        let value = args.tensors[0].get(index) + args.tensors[1].get(index);
        expected.push(value, storing(DType::F32, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let branch = args.tensors[0].to_f32();
    let mut residual = outputs.load(0, 0, branch.len());
    residual
        .iter_mut()
        .zip(&branch)
        .for_each(|(residual, branch)| *residual += branch);
    outputs.store(0, 0, &residual);
}

fn case(count: usize, note: &'static str) -> Case {
    Case::new(format!("count={count}{note}"), move |variant: &Variant| {
        let mut random = Random::new(8);
        let mut branch = random.values(count, 2.0);
        match note {
            ",infinity" => branch[0] = f32::NEG_INFINITY,
            ",nan" => branch[0] = f32::NAN,
            _ => {}
        }
        CaseData {
            parameters: bytemuck::bytes_of(&Params {
                count: count as u32,
            })
            .to_vec(),
            tensors: vec![
                HostTensor::from_f32(variant.activation, &[count], &branch),
                HostTensor::from_f32(DType::F32, &[count], &random.values(count, 100.0)),
            ],
        }
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 70) * sizes.between(1, 1, 70), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, ""),
        case(1001, ""),
        case(5, ",infinity"),
        case(5, ",nan"),
        case(2048 * 4096, "").bench(),
    ]
}
