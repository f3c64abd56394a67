//! `copy/cast`: values times a factor in another type: gradients on their way into products of f16, which are scaled so that
//! small ones are not lost.

use crate::kernels::elementwise;
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        factor: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "copy/cast",
    source: include_str!("../../../shaders/copy/cast.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let pairs = [(DType::F32, DType::F32), (DType::F32, DType::F16), (DType::F16, DType::F32)];
        let variant = |(activation, output)| Variant::typed(activation, output);
        pairs.map(variant).to_vec()
    },
    cost: |args| elementwise::cost(args, 1.0, 0),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// A new tensor of `x`'s shape: its values times `factor`, in type `output`.
pub fn scaled(device: &Device, x: &Tensor, factor: f32, output: DType) -> Result<Tensor> {
    let result = device.allocate(output, x.shape(), "a copy")?;
    let params = Params { count: x.len() as u32, factor };
    device.call(&KERNEL, Variant::typed(x.dtype(), output), &params, &[x, &result])?;
    Ok(result)
}

/// Writes `x`, in the type of `result`, there: as many elements.
pub fn cast_into(device: &Device, x: &Tensor, result: &Tensor) -> Result<()> {
    assert_eq!(x.len(), result.len(), "as many elements");
    let params = Params { count: x.len() as u32, factor: 1.0 };
    device.call(&KERNEL, Variant::typed(x.dtype(), result.dtype()), &params, &[x, result])
}

/// `x` in type `output`: itself if it has that type.
pub fn cast(device: &Device, x: &Tensor, output: DType) -> Result<Tensor> {
    if x.dtype() == output {
        return Ok(x.clone());
    }
    scaled(device, x, 1.0, output)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut expected = Expected::default();
    for value in args.tensors[0].to_f64() {
        let value = value * f64::from(p.factor);
        expected.push(value, storing(args.variant.output, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let mut values = args.tensors[0].to_f32();
    values.par_iter_mut().with_min_len(1 << 14).for_each(|value| *value *= p.factor);
    outputs.store(0, 0, &values);
}

fn case(count: usize, factor: f32) -> Case {
    let label = format!("count={count},factor={factor}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(36);
        let x = random.values(count, 2.0);
        let params = Params { count: count as u32, factor };
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[count], &x),
            HostTensor::zeros(variant.output, &[count]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(elementwise::count(sizes), [1.0, 0.125, 1000.0][sizes.between(2, 0, 2)])
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1.0),
        case(1001, 0.125),
        case(1002, 3.0),
        case(1003, 0.5),
        case(5, 1.0).with(Poison::NegativeInfinity),
        case(5, 1.0).with(Poison::NaN),
        case(1_050_001, 1.0).only(|variant| variant.output == DType::F32),
        case(2048 * 4096, 1.0).bench(),
    ]
}
