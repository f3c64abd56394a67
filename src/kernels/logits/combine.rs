//! `logits/combine`: a weighted sum of two models' logits, result = left_factor left + right_factor right, over the tokens that both
//! have: averages of models, and what an expert adds to an anti-expert (proxy tuning, Liu et al. 2024, arXiv 2401.08565, equation 1).

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        left_columns: u32,
        right_columns: u32,
        left_factor: f32,
        right_factor: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "logits/combine",
    source: include_str!("../../../shaders/logits/combine.wgsl"),
    bindings: &[
        binding("left", Access::Read, Element::Is(DType::F32)),
        binding("right", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    groups: |args| fold(args.tensors[2].len().div_ceil(128)),
    cost: |args| {
        let values = args.tensors[2].len() as f64;
        Cost::new(3.0 * values, 12.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Logits, f32 of (rows, any number of columns), and their factor.
#[derive(Clone, Copy, Debug)]
pub struct Weighted<'a>(pub &'a Tensor, pub f32);

/// The weighted sum of two rows of logits, f32 of (rows, `columns`): the first columns of both.
pub fn combine(
    device: &Device,
    left: Weighted<'_>,
    right: Weighted<'_>,
    columns: usize,
) -> Result<Tensor> {
    let rows = left.0.shape()[0];
    let widths = [left, right].map(|Weighted(logits, _)| logits.len() / rows);
    assert!(widths.iter().all(|width| *width >= columns), "{columns} of {widths:?} columns");
    let result = device.allocate(DType::F32, &[rows, columns], "combined logits")?;
    let params = Params::new((rows, columns), widths, [left.1, right.1]);
    device.call(&KERNEL, Variant::BASELINE, &params, &[left.0, right.0, &result])?;
    Ok(result)
}

impl Params {
    fn new((rows, columns): (usize, usize), widths: [usize; 2], factors: [f32; 2]) -> Self {
        let [left_columns, right_columns] = widths.map(|width| width as u32);
        let [left_factor, right_factor] = factors;
        let (rows, columns) = (rows as u32, columns as u32);
        Self { rows, columns, left_columns, right_columns, left_factor, right_factor }
    }

    /// The places in both inputs of each result.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let widths = [self.left_columns as usize, self.right_columns as usize];
        let (rows, columns) = (self.rows as usize, self.columns as usize);
        let row = move |row: usize| {
            (0..columns).map(move |column| (row * widths[0] + column, row * widths[1] + column))
        };
        (0..rows).flat_map(row)
    }
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut expected = Expected::default();
    for (left, right) in p.places() {
        let left = args.tensors[0].get(left) * f64::from(p.left_factor);
        let right = args.tensors[1].get(right) * f64::from(p.right_factor);
        let value = left + right;
        expected.push(value, U * (left.abs() + right.abs()) + storing(DType::F32, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (left, right) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let sum = |(l, r): (usize, usize)| p.left_factor * left[l] + p.right_factor * right[r];
    let values: Vec<f32> = p.places().map(sum).collect();
    outputs.store(0, 0, &values);
}

fn case(shape: (usize, usize), more: [usize; 2], factors: [f32; 2]) -> Case {
    let [left, right] = more.map(|more| shape.1 + more);
    let (rows, columns) = shape;
    let label =
        format!("rows={rows},columns={columns},left={left},right={right},factors={factors:?}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(84);
        let mut logits = |width: usize| {
            let values = random.values(rows * width, 20.0);
            HostTensor::from_f32(DType::F32, &[rows, width], &values)
        };
        Params::new(shape, [left, right], factors).case(vec![
            logits(left),
            logits(right),
            HostTensor::zeros(DType::F32, &[rows, columns]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let more = [sizes.between(2, 0, 9), sizes.between(3, 0, 9)];
    let factors = [[1.0, -1.0], [0.5, 0.5], [1.0, 1.7]][sizes.between(4, 0, 2)];
    case((sizes.between(0, 1, 20), sizes.between(1, 1, 600)), more, factors)
}

fn cases() -> Vec<Case> {
    vec![
        case((3, 101), [0, 0], [1.0, -1.0]),
        case((1, 1), [0, 3], [0.5, 0.5]),
        case((4, 255), [7, 0], [1.0, 0.6]),
        case((5, 64), [1, 2], [0.25, 0.75]),
        case((2, 97), [0, 0], [1.0, 2.0]).with(Poison::Infinity),
        case((2, 97), [0, 0], [1.0, 2.0]).poisoned(1, Poison::NaN),
        case((32, 128_256), [0, 0], [1.0, 0.5]).bench(),
    ]
}
