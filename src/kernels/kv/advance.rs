//! `kv/advance`: the token that was chosen becomes the next one, without the processor: the next pass reads it, and the cache holds one
//! token more. It is told with its logits' log-sum-exp, which is not finite where a logit is not. Exact.

use crate::kernels::prelude::*;

params! {
    struct Params {
        sequences: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "kv/advance",
    source: include_str!("../../../shaders/kv/advance.wgsl"),
    bindings: &[
        binding("chosen", Access::Read, Element::Is(DType::U32)),
        binding("lse", Access::Read, Element::Is(DType::F32)),
        binding("ids", Access::ReadWrite, Element::Is(DType::U32)),
        binding("past", Access::ReadWrite, Element::Is(DType::U32)),
        binding("told", Access::ReadWrite, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || vec![Variant::BASELINE],
    groups: |args| fold(args.tensors[0].len().div_ceil(64)),
    cost: |args| Cost::new(0.0, 28.0 * args.tensors[0].len() as f64),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// For each sequence: `chosen` takes its place in `ids`, `past` grows by one, and `told`, u32 of (sequences, 2), gets the token and
/// the bits of `lse`.
pub fn advance(
    device: &Device,
    (chosen, lse): (&Tensor, &Tensor),
    ids: &Tensor,
    past: &Tensor,
    told: &Tensor,
) -> Result<()> {
    let params = Params { sequences: ids.len() as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[chosen, lse, ids, past, told])
}

fn told(args: &Args<'_>) -> Vec<u32> {
    let pairs = args.tensors[0].u32s().iter().zip(args.tensors[1].to_f32());
    pairs.flat_map(|(token, lse)| [*token, lse.to_bits()]).collect()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let exact = |words: Vec<u32>| Expected::exact(words.into_iter().map(f64::from).collect());
    let past = args.tensors[3].u32s().iter().map(|past| past + 1).collect();
    vec![exact(args.tensors[0].u32s().to_vec()), exact(past), exact(told(args))]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let (chosen, told) = (args.tensors[0].u32s(), told(args));
    outputs.words(0)[..chosen.len()].copy_from_slice(chosen);
    outputs.words(1)[..chosen.len()].iter_mut().for_each(|past| *past += 1);
    outputs.words(2)[..told.len()].copy_from_slice(&told);
}

fn case(sequences: usize) -> Case {
    Case::new(format!("sequences={sequences}"), move |_: &Variant| {
        let mut random = Random::new(29);
        let mut words = |shape: &[usize]| -> HostTensor {
            let count = shape.iter().product();
            let words: Vec<u32> = (0..count).map(|_| (random.value().abs() * 1e6) as u32).collect();
            HostTensor::from_u32(shape, &words)
        };
        let [chosen, ids, past] = [0, 1, 2].map(|_| words(&[sequences]));
        let told = words(&[sequences, 2]);
        let mut lse = random.values(sequences, 20.0);
        lse[0] = f32::INFINITY;
        let params = Params { sequences: sequences as u32 };
        let lse = HostTensor::from_f32(DType::F32, &[sequences], &lse);
        params.case(vec![chosen, lse, ids, past, told])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 150))
}

fn cases() -> Vec<Case> {
    vec![case(1), case(5), case(70)]
}
