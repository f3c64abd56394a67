//! `logits/soft_cap`: the soft cap of logits (Gemma 2, arXiv 2408.00118), in place: result = cap tanh(result / cap).

use crate::kernels::activation;
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        cap: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "logits/soft_cap",
    source: include_str!("../../../shaders/logits/soft_cap.wgsl"),
    bindings: &[binding(
        "result",
        Access::ReadWrite,
        Element::Is(DType::F32),
    )],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    groups: |args| fold(args.tensors[0].len().div_ceil(4 * 128)),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost {
            operations: 16.0 * values,
            bytes: 8.0 * values,
        }
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Caps `logits`, f32 of any shape, in place. `cap` is above zero.
pub fn soft_cap(device: &Device, logits: &Tensor, cap: f32) -> Result<()> {
    let params = Params {
        count: logits.len() as u32,
        cap,
    };
    device.run(&Call {
        kernel: &KERNEL,
        variant: Variant::BASELINE,
        parameters: bytemuck::bytes_of(&params),
        tensors: &[logits],
    })
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let element = |x: &f64| {
        let (value, bound) = activation::soft_cap_reference(*x, 0.0, f64::from(p.cap));
        (value, bound + storing(DType::F32, value))
    };
    let (values, bounds) = args.tensors[0].to_f64().par_iter().map(element).unzip();
    vec![Expected { values, bounds }]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let logits: &mut [f32] = bytemuck::cast_slice_mut(outputs.words(0));
    logits[..p.count as usize]
        .par_iter_mut()
        .with_min_len(1 << 12)
        .for_each(|x| *x = activation::soft_cap(*x, p.cap));
}

fn case(count: usize, scale: f32, cap: f32, note: &'static str) -> Case {
    Case::new(
        format!("count={count},scale={scale},cap={cap}{note}"),
        move |_: &Variant| {
            let mut logits = Random::new(37).values(count, scale);
            match note {
                ",zeros" => logits.fill(0.0),
                ",infinity" => logits[0] = f32::INFINITY,
                ",nan" => logits[0] = f32::NAN,
                _ => {}
            }
            let count = count as u32;
            CaseData {
                parameters: bytemuck::bytes_of(&Params { count, cap }).to_vec(),
                tensors: vec![HostTensor::from_f32(DType::F32, &[logits.len()], &logits)],
            }
        },
    )
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 70) * sizes.between(1, 1, 70),
        [0.1, 4.0, 1e3][sizes.between(2, 0, 2)],
        [1.0, 30.0, 50.0][sizes.between(3, 0, 2)],
        "",
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1.0, 30.0, ""),
        case(1001, 40.0, 30.0, ""),
        case(254, 1e-3, 50.0, ""),
        case(255, 1e4, 50.0, ""),
        case(64, 1.0, 30.0, ",zeros"),
        case(3, 1.0, 30.0, ",infinity"),
        case(7, 1.0, 30.0, ",nan"),
        case(4_200_001, 60.0, 30.0, ""),
        case(128 * 262_144, 20.0, 30.0, "").bench(),
    ]
}
