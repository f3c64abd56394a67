//! `copy/gather_rows`: rows of one tensor to rows of another, by two lists: a prefix's keys and values into the caches that go on
//! from it, or the few rows of a pass whose logits are wanted. Words, so that it takes any type whose rows are whole words.

use crate::kernels::prelude::*;

params! {
    struct Params {
        first: u32,
        count: u32,
        width: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "copy/gather_rows",
    source: include_str!("../../../shaders/copy/gather_rows.wgsl"),
    bindings: &[
        binding("source", Access::Read, Element::Is(DType::U32)),
        binding("origin", Access::Read, Element::Is(DType::U32)),
        binding("target_row", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::ReadWrite, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.count as usize * p.width as usize).div_ceil(64))
    },
    cost: |args| {
        let p: Params = args.parameters();
        Cost::new(0.0, 8.0 * f64::from(p.count) * f64::from(p.width))
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Rows of a copy: which of the source go where in the result. No row of the result is named twice.
#[derive(Clone, Debug)]
pub struct Rows {
    from: Tensor,
    to: Tensor,
}

impl Rows {
    /// (row of the source, row of the result) pairs, on the device. At least one.
    pub fn upload(device: &Device, pairs: &[(u32, u32)]) -> Result<Self> {
        let (from, to): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
        let list = |rows: &[u32], what| {
            let rows = HostTensor::from_u32(&[rows.len()], rows);
            device.upload(&rows, what)
        };
        Ok(Self { from: list(&from, "rows to copy")?, to: list(&to, "rows to copy to")? })
    }

    /// The rows of the source, u32 (rows).
    pub fn origin(&self) -> &Tensor {
        &self.from
    }
}

/// Copies rows of `width` elements of `source` to `result`; both have one type, and rows of whole words.
pub fn rows(
    device: &Device,
    source: &Tensor,
    result: &Tensor,
    width: usize,
    rows: &Rows,
) -> Result<()> {
    assert_eq!(source.dtype(), result.dtype(), "rows keep their type");
    let words = width * source.dtype().size() / 4;
    let (source, result) = (source.words(), result.words());
    let all = rows.from.len();
    let step = ((device.call_limit().bytes / (8 * words) as f64) as usize).max(1);
    for first in (0..all).step_by(step) {
        let params = Params {
            first: first as u32,
            count: step.min(all - first) as u32,
            width: words as u32,
        };
        device.call(
            &KERNEL,
            Variant::BASELINE,
            &params,
            &[&source, &rows.from, &rows.to, &result],
        )?;
    }
    Ok(())
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (source, width) = (args.tensors[0].u32s(), p.width as usize);
    let mut values = args.tensors[3].to_f64();
    for pair in p.first as usize..(p.first + p.count) as usize {
        let (from, to) = (args.tensors[1].u32s()[pair], args.tensors[2].u32s()[pair]);
        for column in 0..width {
            let word = source[from as usize * width + column];
            values[to as usize * width + column] = f64::from(word);
        }
    }
    vec![Expected::exact(values)]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (source, width) = (args.tensors[0].u32s(), p.width as usize);
    let result = outputs.words(0);
    for pair in p.first as usize..(p.first + p.count) as usize {
        let (from, to) = (args.tensors[1].u32s()[pair], args.tensors[2].u32s()[pair]);
        let (from, to) = (from as usize * width, to as usize * width);
        result[to..to + width].copy_from_slice(&source[from..from + width]);
    }
}

/// Copies `count` of all pairs from `first` on, between `sources` and `results` rows.
fn case(sources: usize, results: usize, (first, count): (usize, usize), width: usize) -> Case {
    let label =
        format!("sources={sources},results={results},first={first},count={count},width={width}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(17);
        let params = Params { first: first as u32, count: count as u32, width: width as u32 };
        let mut words = |rows: usize| {
            let words: Vec<u32> = (0..rows * width).map(|_| random.below(1 << 30)).collect();
            HostTensor::from_u32(&[rows, width], &words)
        };
        let (source, result) = (words(sources), words(results));
        // Rows of the source in any order and more than once; each of the result at most once.
        let pairs = first + count + 1;
        let from: Vec<u32> = (0..pairs).map(|_| random.below(sources as u32)).collect();
        let to: Vec<u32> = (0..pairs).map(|pair| (results - 1 - pair) as u32).collect();
        params.case(vec![
            source,
            HostTensor::from_u32(&[pairs], &from),
            HostTensor::from_u32(&[pairs], &to),
            result,
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (first, count) = (sizes.between(0, 0, 5), sizes.between(1, 1, 60));
    let results = first + count + 1 + sizes.between(2, 0, 20);
    case(sizes.between(3, 1, 50), results, (first, count), sizes.between(4, 1, 200))
}

fn cases() -> Vec<Case> {
    vec![
        case(9, 12, (0, 7), 33),
        case(1, 2, (0, 1), 1),
        case(40, 90, (3, 64), 96),
        case(4096, 4200, (0, 4096), 192).bench(),
    ]
}
