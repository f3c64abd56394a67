//! `mask/zero_weights`: zeroes the rows and columns of a weight that masks rule out, in place: what pruning them does to a model,
//! before its matrices are made smaller ([`copy/compact`](crate::kernels::copy::compact)).

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        /// The first of the rows of this call.
        row_start: u32,
        /// 1: the mask of rows, of columns, is there to be read.
        by_row: u32,
        by_column: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "mask/zero_weights",
    source: include_str!("../../../shaders/mask/zero_weights.wgsl"),
    bindings: &[
        binding("row_mask", Access::Read, Element::Is(DType::U32)),
        binding("column_mask", Access::Read, Element::Is(DType::U32)),
        binding("weight", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.rows as usize * p.columns as usize).div_ceil(256))
    },
    cost: |args| {
        let p: Params = args.parameters();
        Cost::new(0.0, 4.0 * f64::from(p.rows) * f64::from(p.columns))
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Zeroes those rows of `weight`, f32 (rows, columns), whose `row_mask`, u32 (rows), is 0, and those columns whose
/// `column_mask`, u32 (columns), is; a mask that is not there rules nothing out. Infinities and NaN there go too.
pub fn zero_weights(
    device: &Device,
    row_mask: Option<&Tensor>,
    column_mask: Option<&Tensor>,
    weight: &Tensor,
) -> Result<()> {
    // Where one is missing the other is bound in its place, and not read as it.
    let Some(either) = row_mask.or(column_mask) else {
        return Ok(());
    };
    let (rows, columns) = (weight.shape()[0], weight.shape()[1]);
    assert!(
        row_mask.is_none_or(|mask| mask.len() == rows)
            && column_mask.is_none_or(|mask| mask.len() == columns),
        "each row and column has its mask"
    );
    let step = ((device.call_limit().bytes / (4 * columns) as f64) as usize).max(1);
    for start in (0..rows).step_by(step) {
        let params = Params {
            rows: step.min(rows - start) as u32,
            columns: columns as u32,
            row_start: start as u32,
            by_row: u32::from(row_mask.is_some()),
            by_column: u32::from(column_mask.is_some()),
        };
        device.call(
            &KERNEL,
            Variant::BASELINE,
            &params,
            &[row_mask.unwrap_or(either), column_mask.unwrap_or(either), weight],
        )?;
    }
    Ok(())
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (row_mask, column_mask) = (args.tensors[0].u32s(), args.tensors[1].u32s());
    let mut values = args.tensors[2].to_f64();
    for row in p.row_start as usize..(p.row_start + p.rows) as usize {
        for column in 0..p.columns as usize {
            let row_out = p.by_row == 1 && row_mask[row] == 0;
            let column_out = p.by_column == 1 && column_mask[column] == 0;
            if row_out || column_out {
                values[row * p.columns as usize + column] = 0.0;
            }
        }
    }
    vec![Expected::exact(values)]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (row_mask, column_mask) = (args.tensors[0].u32s(), args.tensors[1].u32s());
    let (start, columns) = (p.row_start as usize, p.columns as usize);
    outputs.words(0)[start * columns..(start + p.rows as usize) * columns]
        .par_chunks_exact_mut(columns)
        .enumerate()
        .for_each(|(row, line)| {
            if p.by_row == 1 && row_mask[start + row] == 0 {
                line.fill(0);
            } else if p.by_column == 1 {
                for (word, mask) in line.iter_mut().zip(column_mask) {
                    *word = if *mask == 0 { 0 } else { *word };
                }
            }
        });
}

/// Masks a `window` of all rows, (first, number), by rows, by columns or by both.
fn case(
    (rows, columns): (usize, usize),
    window: (usize, usize),
    (by_row, by_column): (bool, bool),
    note: &'static str,
) -> Case {
    let (start, count) = window;
    let label = format!(
        "rows={rows},columns={columns},start={start},count={count},by_row={by_row},by_column={by_column}{note}"
    );
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(57);
        let mut weight = random.values(rows * columns, 1.0);
        // A mask may be any number but 0.
        let mut mask = |count: usize| -> Vec<u32> {
            let any = [0, 1, 0, 7, 1 << 31];
            (0..count).map(|_| any[random.below(5) as usize]).collect()
        };
        let (mut row_mask, mut column_mask) = (mask(rows), mask(columns));
        match note {
            // NaN stands among dropped and kept weights alike: a product would spread it.
            ",nan" => weight.iter_mut().step_by(3).for_each(|value| *value = f32::NAN),
            ",infinity" => weight.iter_mut().step_by(2).for_each(|value| *value = f32::INFINITY),
            ",all" => [&mut row_mask, &mut column_mask].into_iter().for_each(|mask| mask.fill(1)),
            ",none" => column_mask.fill(0),
            _ => {}
        }
        let params = Params {
            rows: count as u32,
            columns: columns as u32,
            row_start: start as u32,
            by_row: u32::from(by_row),
            by_column: u32::from(by_column),
        };
        params.case(vec![
            HostTensor::from_u32(&[rows], &row_mask),
            HostTensor::from_u32(&[columns], &column_mask),
            HostTensor::from_f32(DType::F32, &[rows, columns], &weight),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (start, count) = (sizes.between(0, 0, 9), sizes.between(1, 1, 60));
    let rows = start + count + sizes.between(2, 0, 5);
    let by = [(true, true), (true, false), (false, true)][sizes.between(3, 0, 2)];
    case((rows, sizes.between(4, 1, 200)), (start, count), by, "")
}

fn cases() -> Vec<Case> {
    let both = (true, true);
    vec![
        case((13, 97), (0, 13), both, ""),
        case((1, 1), (0, 1), both, ",none"),
        case((9, 40), (4, 3), both, ""),
        case((12, 33), (0, 12), (true, false), ""),
        case((12, 33), (0, 12), (false, true), ""),
        case((7, 20), (0, 7), both, ",nan"),
        case((7, 20), (0, 7), both, ",infinity"),
        case((7, 20), (0, 7), both, ",all"),
        case((7, 20), (0, 7), both, ",none"),
        case((4096, 8192), (0, 4096), both, "").bench(),
    ]
}
