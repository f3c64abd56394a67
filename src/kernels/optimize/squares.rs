//! `optimize/squares`: sums of squares of parts of a tensor, partials[first + p] = sum of x[i]^2 over part p. Those of all
//! tensors of a model make the norm of its gradient, which [`optimize/clip`](super::clip) needs. Added in a fixed order.

use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        parts: u32,
        /// Where the first part's sum goes.
        first: u32,
    }
}

/// Elements for which a part is worth a workgroup.
const PART: usize = 1 << 14;

/// Parts of one tensor: enough to fill a large device, few enough that one workgroup adds all of a model's.
const MOST: usize = 512;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "optimize/squares",
    source: include_str!("../../../shaders/optimize/squares.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::F32)),
        binding("partials", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| fold(args.parameters::<Params>().parts as usize),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(2.0 * values, 4.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// How many sums [`squares`] makes of a tensor of `len` elements.
pub fn parts(len: usize) -> usize {
    len.div_ceil(PART).clamp(1, MOST)
}

/// Writes the sums of squares of the parts of `x`, f32, to `partials[first..]`, f32, and says how many: [`parts`] of them.
///
/// NaN and infinity make their part's sum NaN or infinite, and so do squares beyond f32.
pub fn squares(device: &Device, x: &Tensor, partials: &Tensor, first: usize) -> Result<usize> {
    let parts = parts(x.len());
    assert!(first + parts <= partials.len(), "a place for each part's sum");
    let params = Params { count: x.len() as u32, parts: parts as u32, first: first as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[x, partials])?;
    Ok(parts)
}

/// The part that an element belongs to: lanes of 256 take vectors of four in turn.
fn part_of(index: usize, parts: usize) -> usize {
    index / 4 / 256 % parts
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (parts, first) = (p.parts as usize, p.first as usize);
    let mut sums = vec![0.0; parts];
    let mut terms = vec![0; parts];
    for index in 0..p.count as usize {
        let part = part_of(index, parts);
        sums[part] += args.tensors[0].get(index).powi(2);
        terms[part] += 1;
    }
    let mut expected = Expected::exact(args.tensors[1].to_f64());
    let line = sums.into_iter().zip(terms).map(|(sum, terms)| {
        let below = terms as f64 * DType::F32.underflow();
        let beyond = sum > f64::from(f32::MAX);
        let value = if beyond { f64::INFINITY } else { sum };
        (value, gamma(terms + 2) * sum + below + storing(DType::F32, sum))
    });
    expected.put(first, line);
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let parts = p.parts as usize;
    let x = args.tensors[0].to_f32();
    let sums: Vec<f32> = (0..parts)
        .into_par_iter()
        .map(|part| {
            let stretches = x.chunks(4 * 256).skip(part).step_by(parts);
            let squares = stretches.flatten().map(|value| f64::from(*value).powi(2));
            squares.sum::<f64>() as f32
        })
        .collect();
    outputs.store(0, p.first as usize, &sums);
}

/// Sums of `count` elements in `parts`, behind `first` sums of others.
fn case(count: usize, parts: usize, first: usize, note: &'static str) -> Case {
    Case::new(format!("count={count},parts={parts},first={first}{note}"), move |_: &Variant| {
        let mut random = Random::new(61);
        let mut x = random.values(count, 2.0);
        match note {
            // Squares below the normal numbers of f32.
            ",tiny" => x.iter_mut().for_each(|value| *value *= 1e-20),
            ",beyond" => x[count / 2] = 1e20,
            _ => {}
        }
        let before = random.values(first + parts + 3, 1.0);
        let params = Params { count: count as u32, parts: parts as u32, first: first as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[count], &x),
            HostTensor::from_f32(DType::F32, &[before.len()], &before),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let count = sizes.between(0, 1, 90) * sizes.between(1, 1, 90);
    case(count, sizes.between(2, 1, 5), sizes.between(3, 0, 9), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1, 0, ""),
        case(3, 1, 2, ""),
        // The last vector, no whole one, opens the second part's turn.
        case(1026, 2, 0, ""),
        case(1023, 2, 1, ""),
        case(100_003, 7, 4, ""),
        case(5000, 512, 0, ""),
        case(2048, 1, 0, ",tiny"),
        case(2048, 2, 0, ",beyond"),
        case(700, 1, 1, "").with(Poison::Zeros),
        case(700, 1, 1, "").with(Poison::NegativeInfinity),
        case(700, 1, 1, "").with(Poison::NaN),
        case(4096 * 8192, 512, 0, "").bench(),
    ]
}
