//! `copy/compact`: some rows and columns of a matrix as a smaller one, result[i, j] = source[kept_rows[i], kept_columns[j]].
//! Words, so that values keep their bits.

use crate::kernels::prelude::*;

params! {
    struct Params {
        /// The first of the result's rows that this call writes, and their number.
        first: u32,
        count: u32,
        width: u32,
        source_width: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "copy/compact",
    source: include_str!("../../../shaders/copy/compact.wgsl"),
    bindings: &[
        binding("source", Access::Read, Element::Is(DType::U32)),
        binding("kept_rows", Access::Read, Element::Is(DType::U32)),
        binding("kept_columns", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::ReadWrite, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.count as usize * p.width as usize).div_ceil(256))
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

/// Copies the rows and columns of `source`, (rows, columns), that `kept_rows`, u32 (n), and `kept_columns`, u32 (m), name,
/// in their order, to `result`, (n, m). Both have one type, f32 or u32.
pub fn compact(
    device: &Device,
    source: &Tensor,
    (kept_rows, kept_columns): (&Tensor, &Tensor),
    result: &Tensor,
) -> Result<()> {
    assert_eq!(source.dtype(), result.dtype(), "values keep their type");
    assert_eq!(source.dtype().size(), 4, "elements are words");
    let (rows, width) = (kept_rows.len(), kept_columns.len());
    assert_eq!(result.len(), rows * width, "each place gets a value");
    if result.is_empty() {
        return Ok(());
    }
    let source_width = source.shape()[1];
    let (source, result) = (source.words(), result.words());
    let step = ((device.call_limit().bytes / (8 * width) as f64) as usize).max(1);
    for first in (0..rows).step_by(step) {
        let params = Params {
            first: first as u32,
            count: step.min(rows - first) as u32,
            width: width as u32,
            source_width: source_width as u32,
        };
        device.call(
            &KERNEL,
            Variant::BASELINE,
            &params,
            &[&source, kept_rows, kept_columns, &result],
        )?;
    }
    Ok(())
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (source, rows) = (args.tensors[0].u32s(), args.tensors[1].u32s());
    let columns = args.tensors[2].u32s();
    let mut values = args.tensors[3].to_f64();
    for row in p.first as usize..(p.first + p.count) as usize {
        for column in 0..p.width as usize {
            let from = rows[row] as usize * p.source_width as usize + columns[column] as usize;
            values[row * p.width as usize + column] = f64::from(source[from]);
        }
    }
    vec![Expected::exact(values)]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (source, rows) = (args.tensors[0].u32s(), args.tensors[1].u32s());
    let columns = args.tensors[2].u32s();
    let (first, end) = (p.first as usize, (p.first + p.count) as usize);
    let (width, source_width) = (p.width as usize, p.source_width as usize);
    outputs.words(0)[first * width..end * width]
        .par_chunks_exact_mut(width)
        .zip(&rows[first..end])
        .for_each(|(line, row)| {
            let source = &source[*row as usize * source_width..][..source_width];
            for (word, column) in line.iter_mut().zip(columns) {
                *word = source[*column as usize];
            }
        });
}

/// Writes `count` rows of the result from `first` on; of `rows` and `columns` so many of a hundred are kept.
fn case(
    (rows, columns): (usize, usize),
    (first, count): (usize, usize),
    (keep_rows, keep_columns): (usize, usize),
    note: &'static str,
) -> Case {
    let label = format!(
        "rows={rows},columns={columns},first={first},count={count},kept={keep_rows}x{keep_columns}{note}"
    );
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(58);
        let source: Vec<u32> = (0..rows * columns).map(|_| random.word()).collect();
        let mut kept = |all: usize, keep: usize| -> Vec<u32> {
            let mut places: Vec<u32> = (0..all as u32).collect();
            while places.len() > keep {
                places.remove(random.below(places.len() as u32) as usize);
            }
            if note == ",reversed" {
                places.reverse();
            }
            places
        };
        let (kept_rows, kept_columns) = (kept(rows, keep_rows), kept(columns, keep_columns));
        let before: Vec<u32> = (0..keep_rows * keep_columns).map(|_| random.word()).collect();
        let params = Params {
            first: first as u32,
            count: count as u32,
            width: keep_columns as u32,
            source_width: columns as u32,
        };
        params.case(vec![
            HostTensor::from_u32(&[rows, columns], &source),
            HostTensor::from_u32(&[keep_rows], &kept_rows),
            HostTensor::from_u32(&[keep_columns], &kept_columns),
            HostTensor::from_u32(&[keep_rows, keep_columns], &before),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (rows, columns) = (sizes.between(0, 1, 60), sizes.between(1, 1, 200));
    let kept = (sizes.between(2, 1, rows), sizes.between(3, 1, columns));
    let first = sizes.between(4, 0, kept.0 - 1);
    let count = sizes.between(5, 1, kept.0 - first);
    let note = ["", ",reversed"][sizes.between(6, 0, 1)];
    case((rows, columns), (first, count), kept, note)
}

fn cases() -> Vec<Case> {
    vec![
        case((13, 97), (0, 9), (9, 60), ""),
        case((1, 1), (0, 1), (1, 1), ""),
        case((40, 30), (5, 11), (20, 30), ""),
        case((40, 30), (0, 40), (40, 1), ""),
        case((7, 300), (0, 3), (3, 257), ",reversed"),
        case((4096, 8192), (0, 3072), (3072, 6144), "").bench(),
    ]
}
