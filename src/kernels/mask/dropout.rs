//! `mask/dropout`: inverted dropout (Srivastava et al. 2014, JMLR 15, section 10: scaled in training instead of afterwards):
//! result[i] = x[i] / (1 - rate), or 0 with probability `rate`.
//!
//! Which elements are dropped is a hash of the seed and of the element's place, nothing that is kept: the same call on a
//! gradient is the backward pass. The hash is pcg3d of Jarzynski and Olano 2020 ("Hash Functions for GPU Rendering", JCGT 9,
//! listing of section 3), in integers of 32 bits, so that every device drops the same.

use crate::kernels::elementwise;
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        /// The place of the first element, of all that a seed serves.
        offset: u32,
        seed_low: u32,
        seed_high: u32,
        /// Hashes below it drop their element: rate 2^32.
        threshold: u32,
        /// 1 / (1 - rate).
        factor: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "mask/dropout",
    source: include_str!("../../../shaders/mask/dropout.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let mut variants = elementwise::variants();
        variants.push(Variant::typed(DType::F16, DType::F32));
        variants
    },
    cost: |args| elementwise::cost(args, 20.0, 0),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

impl Params {
    fn new(count: usize, rate: f32, seed: u64, offset: u32) -> Self {
        let rate = f64::from(rate);
        Self {
            count: count as u32,
            offset,
            seed_low: seed as u32,
            seed_high: (seed >> 32) as u32,
            threshold: (rate * f64::powi(2.0, 32)) as u32,
            factor: (1.0 / (1.0 - rate)) as f32,
        }
    }

    fn keeps(&self, index: usize) -> bool {
        let place = self.offset.wrapping_add(index as u32);
        pcg3d([place, self.seed_low, self.seed_high]) >= self.threshold
    }
}

/// A new tensor of `x`'s shape in type `output`, f32 or f16 as `x`: its elements over 1 - `rate`, or 0 with probability `rate`,
/// at least 0 and below 1.
///
/// An element is dropped by `seed` and by `offset` plus its index, modulo 2^32: parts of a tensor come out as the whole does,
/// and other tensors of a step ask for other seeds.
pub fn dropout(
    device: &Device,
    x: &Tensor,
    rate: f32,
    seed: u64,
    offset: u32,
    output: DType,
) -> Result<Tensor> {
    assert!((0.0..1.0).contains(&rate), "a share to drop below 1: {rate}");
    let result = device.allocate(output, x.shape(), "what dropout leaves")?;
    let params = Params::new(x.len(), rate, seed, offset);
    device.call(&KERNEL, Variant::typed(x.dtype(), output), &params, &[x, &result])?;
    Ok(result)
}

fn pcg3d(words: [u32; 3]) -> u32 {
    let mut v = words.map(|word| word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let round = |v: &mut [u32; 3]| {
        for (to, (a, b)) in [(0, (1, 2)), (1, (2, 0)), (2, (0, 1))] {
            v[to] = v[to].wrapping_add(v[a].wrapping_mul(v[b]));
        }
    };
    round(&mut v);
    v = v.map(|word| word ^ (word >> 16));
    round(&mut v);
    v[2]
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut expected = Expected::default();
    for (index, value) in args.tensors[0].to_f64().into_iter().enumerate() {
        if p.keeps(index) {
            let value = value * f64::from(p.factor);
            expected.push(value, storing(DType::F32, value) + storing(args.variant.output, value));
        } else {
            expected.push(0.0, 0.0);
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let mut values = args.tensors[0].to_f32();
    let places = values.par_iter_mut().with_min_len(1 << 14).enumerate();
    places.for_each(|(index, value)| {
        *value = if p.keeps(index) { *value * p.factor } else { 0.0 };
    });
    outputs.store(0, 0, &values);
}

fn case(count: usize, rate: f32, seed: u64, offset: u32) -> Case {
    let label = format!("count={count},rate={rate},seed={seed:x},offset={offset}");
    Case::new(label, move |variant: &Variant| {
        let x = Random::new(65).values(count, 2.0);
        Params::new(count, rate, seed, offset).case(vec![
            HostTensor::from_f32(variant.activation, &[count], &x),
            HostTensor::zeros(variant.output, &[count]),
        ])
    })
}

/// A hash that is the threshold itself keeps its element.
fn at_threshold(place: u32) -> Case {
    Case::new(format!("threshold of place {place}"), move |variant: &Variant| {
        let params = Params::new(5, 0.5, 9, 20);
        let threshold = pcg3d([20 + place, params.seed_low, params.seed_high]);
        let x = Random::new(65).values(5, 2.0);
        Params { threshold, ..params }.case(vec![
            HostTensor::from_f32(variant.activation, &[5], &x),
            HostTensor::zeros(variant.output, &[5]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let rate = [0.0, 0.1, 0.5, 0.95][sizes.between(2, 0, 3)];
    let seed = 0x0123_4567_89ab_cdef_u64.wrapping_mul(sizes.between(3, 0, 255) as u64);
    case(elementwise::count(sizes), rate, seed, 1 << sizes.between(4, 0, 31))
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 0.0, 0, 0),
        case(1001, 0.1, 1, 0),
        // Places pass 2^32.
        case(1002, 0.5, 0xfeed_0000_0001, u32::MAX - 500),
        case(1003, 0.9, 7 << 40, 3),
        at_threshold(0),
        at_threshold(1),
        at_threshold(2),
        at_threshold(3),
        case(40, 0.5, 2, 0).with(Poison::Zeros),
        case(40, 0.5, 2, 0).with(Poison::Infinity),
        case(40, 0.5, 2, 0).with(Poison::NaN),
        case(40, 0.5, 3, 0).with(Poison::Infinity),
        case(40, 0.5, 3, 0).with(Poison::NaN),
        case(1_050_001, 0.1, 5, 0).only(|variant| variant.output == DType::F32),
        case(2048 * 4096, 0.1, 5, 0).bench(),
    ]
}
