//! `kv/append`: new tokens' rows behind what each sequence's cache holds already. Exact.

use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        tokens_per_sequence: u32,
        width: u32,
        capacity: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "kv/append",
    source: include_str!("../../../shaders/kv/append.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("past", Access::Read, Element::Is(DType::U32)),
        binding("cache", Access::ReadWrite, Element::Activation),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let half = Variant::typed(DType::F16, DType::F16);
        vec![Variant::BASELINE, half]
    },
    groups: |args| fold(args.tensors[0].len().div_ceil(64)),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(values, 8.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Appends `x`, (tokens, width), to `cache`, (sequences, capacity, width). `past`: tokens each sequence holds already.
pub fn append(
    device: &Device,
    x: &Tensor,
    past: &Tensor,
    cache: &Tensor,
    capacity: usize,
) -> Result<()> {
    let tokens = x.shape()[0];
    let params = Params {
        tokens: tokens as u32,
        tokens_per_sequence: (tokens / past.len()) as u32,
        width: (x.len() / tokens) as u32,
        capacity: capacity as u32,
    };
    device.call(&KERNEL, Variant::typed(x.dtype(), x.dtype()), &params, &[x, past, cache])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (width, past) = (p.width as usize, args.tensors[1].u32s());
    let mut values = args.tensors[2].to_f64();
    for token in 0..p.tokens as usize {
        let (sequence, order) =
            (token / p.tokens_per_sequence as usize, token % p.tokens_per_sequence as usize);
        let row = sequence * p.capacity as usize + past[sequence] as usize + order;
        for column in 0..width {
            values[row * width + column] = args.tensors[0].get(token * width + column);
        }
    }
    vec![Expected::exact(values)]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (width, past) = (p.width as usize, args.tensors[1].u32s());
    for token in 0..p.tokens as usize {
        let (sequence, order) =
            (token / p.tokens_per_sequence as usize, token % p.tokens_per_sequence as usize);
        let row = sequence * p.capacity as usize + past[sequence] as usize + order;
        outputs.store(0, row * width, &args.tensors[0].load(token * width, width));
    }
}

fn case(sequences: usize, each: usize, width: usize, capacity: usize, past: u32) -> Case {
    let label = format!(
        "sequences={sequences},tokens={each},width={width},capacity={capacity},past={past}"
    );
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(5);
        let (tokens, rows) = (sequences * each, sequences * capacity);
        let past: Vec<u32> = (0..sequences as u32).map(|s| past + s).collect();
        let params = Params {
            tokens: tokens as u32,
            tokens_per_sequence: each as u32,
            width: width as u32,
            capacity: capacity as u32,
        };
        params.case(vec![
            HostTensor::from_f32(
                variant.activation,
                &[tokens, width],
                &random.values(tokens * width, 1.0),
            ),
            HostTensor::from_u32(&[sequences], &past),
            HostTensor::from_f32(
                variant.activation,
                &[rows, width],
                &random.values(rows * width, 1.0),
            ),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (sequences, each, past) =
        (sizes.between(0, 1, 4), sizes.between(1, 1, 40), sizes.between(2, 0, 60));
    let capacity = past + each + sequences + sizes.between(3, 0, 20);
    case(sequences, each, sizes.between(4, 1, 300), capacity, past as u32)
}

fn cases() -> Vec<Case> {
    vec![case(2, 3, 7, 9, 4), case(1, 1, 1, 1, 0), case(3, 33, 96, 64, 10)]
}
