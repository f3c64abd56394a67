//! Importance, selection and smaller matrices, call by call as pruning strings them together.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random, Tensor};
use lopper::gpu::{Options, Tier};
use lopper::kernels::copy::compact::compact;
use lopper::kernels::mask::zero_weights::zero_weights;
use lopper::kernels::score::blocks::blocks;
use lopper::kernels::score::columns::columns;
use lopper::kernels::score::fisher::fisher;
use lopper::kernels::score::rows::rows;
use lopper::kernels::score::{Form, Reduction};
use lopper::kernels::select::threshold::threshold;
use lopper::kernels::select::top_k::top_k;
use lopper::tensor::DType;

use crate::machine::{device, gpu_trial, open};
use crate::numbers::{Within, assert_close};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("importance::on_the_cpu", || pruned(&Device::Cpu)),
        gpu_trial("importance::on_a_gpu".into(), || {
            pruned(&Device::Checked(open(Options {
                tier: Tier::Baseline,
                checked: true,
                ..Options::default()
            })?))
        }),
        gpu_trial("importance::split_by_rows".into(), split_by_rows),
    ]
}

const ROWS: usize = 24;
const COLUMNS: usize = 70;

fn near(what: &str, found: &[f32], expected: &[f64]) {
    assert_close(what, found, expected, Within::EachAndOne(1e-5));
}

/// Six of eight blocks of three rows stay, by what they count in every form, and the columns that reach the median.
fn pruned(device: &Device) -> Result<(), Failed> {
    let mut random = Random::new(61);
    let host = |values: &[f32]| HostTensor::from_f32(DType::F32, &[ROWS, COLUMNS], values);
    let (weight, gradient) =
        (random.values(ROWS * COLUMNS, 1.0), random.values(ROWS * COLUMNS, 1.0));
    let w = device.upload(&host(&weight), "weight")?;
    let g = device.upload(&host(&gradient), "gradient")?;
    let f = device.allocate(DType::F32, &[ROWS, COLUMNS], "Fisher diagonal")?;
    fisher(device, &g, 0.5, &f, false)?;
    fisher(device, &g, 1.5, &f, true)?;
    for form in Form::ALL {
        // What a form does not read need not be there.
        let reads = (form.needs_gradient().then_some(&g), form.needs_fisher().then_some(&f));
        let term = |at: usize| {
            let (w, g) = (f64::from(weight[at]), f64::from(gradient[at]));
            match form {
                Form::L1 => w.abs(),
                Form::L2 => w * w,
                Form::First => (w * g).abs(),
                Form::Second => w * w * 2.0 * g * g,
                Form::Mixed => (w * g - w * w * g * g).abs(),
                Form::Product => w * g,
            }
        };
        let (row, column) = (
            device.allocate(DType::F32, &[1, ROWS], "rows")?,
            device.allocate(DType::F32, &[1, COLUMNS], "columns")?,
        );
        for accumulate in [false, true] {
            rows(device, form, &w, reads.0, reads.1, &row, accumulate)?;
            columns(device, form, &w, reads.0, reads.1, &column, accumulate)?;
        }
        let twice = |places: &mut dyn Iterator<Item = usize>| 2.0 * places.map(term).sum::<f64>();
        let by_row: Vec<f64> =
            (0..ROWS).map(|row| twice(&mut (row * COLUMNS..(row + 1) * COLUMNS))).collect();
        let by_column: Vec<f64> = (0..COLUMNS)
            .map(|column| twice(&mut (column..ROWS * COLUMNS).step_by(COLUMNS)))
            .collect();
        near(&format!("{form:?} of rows"), &device.read(&row)?.to_f32(), &by_row);
        let scores = device.read(&column)?.to_f32();
        near(&format!("{form:?} of columns"), &scores, &by_column);

        let grouped = blocks(device, Reduction::Max, &row, 3)?;
        let (kept_blocks, _) = top_k(device, &grouped, 6)?;
        let by_block: Vec<f64> = by_row
            .chunks(3)
            .map(|three| three.iter().copied().fold(f64::NEG_INFINITY, f64::max))
            .collect();
        let (kept_columns, bar) = top_k(device, &column, COLUMNS / 2)?;
        let again = device.read(&threshold(device, &column, &bar)?)?.words;
        let column_mask = device.read(&kept_columns)?.words;
        assert_eq!(again, column_mask, "{form:?}: threshold, top_k");
        let largest = |scores: &[f64], keep: usize| -> Vec<u32> {
            let above = |score: &f64| scores.iter().filter(|other| *other > score).count();
            scores.iter().map(|score| u32::from(above(score) < keep)).collect()
        };
        let block_mask = device.read(&kept_blocks)?.words;
        assert_eq!(block_mask, largest(&by_block, 6), "{form:?}: blocks");
        assert_eq!(column_mask, largest(&by_column, COLUMNS / 2), "{form:?}: columns");
        smaller(device, &weight, &block_mask, &column_mask)?;
    }
    Ok(())
}

/// A weight masked by rows and by columns, and the matrix of what is left.
fn smaller(
    device: &Device,
    weight: &[f32],
    block_mask: &[u32],
    column_mask: &[u32],
) -> Result<(), Failed> {
    let row_mask: Vec<u32> = block_mask.iter().flat_map(|kept| [*kept; 3]).collect();
    let list = |mask: &[u32]| -> Vec<u32> {
        let places = (0u32..).zip(mask).filter(|(_, kept)| **kept == 1);
        places.map(|(place, _)| place).collect()
    };
    let upload = |words: &[u32]| -> Result<Tensor, Failed> {
        Ok(device.upload(&HostTensor::from_u32(&[words.len()], words), "a list")?)
    };
    let (by_row, by_column) = (upload(&row_mask)?, upload(column_mask)?);
    let host = HostTensor::from_f32(DType::F32, &[ROWS, COLUMNS], weight);
    let masked = device.upload(&host, "masked")?;
    zero_weights(device, None, None, &masked)?;
    zero_weights(device, Some(&by_row), None, &masked)?;
    zero_weights(device, None, Some(&by_column), &masked)?;
    let mut places = Vec::new();
    for (at, value) in device.read(&masked)?.to_f32().iter().enumerate() {
        let kept = row_mask[at / COLUMNS] == 1 && column_mask[at % COLUMNS] == 1;
        let expected = if kept { weight[at] } else { 0.0 };
        assert!(*value == expected, "element {at}, kept: {kept}, is {value}");
        places.extend(kept.then_some(weight[at]));
    }
    let lists = (list(&row_mask), list(column_mask));
    let result = device.allocate(DType::F32, &[lists.0.len(), lists.1.len()], "smaller")?;
    let kept = (upload(&lists.0)?, upload(&lists.1)?);
    compact(device, &masked, (&kept.0, &kept.1), &result)?;
    assert_eq!(device.read(&result)?.to_f32(), places, "the smaller matrix");
    Ok(())
}

/// A weight of more than a software adapter is given at once; results hold something else before.
fn split_by_rows() -> Result<(), Failed> {
    let (rows_of, columns_of) = (17_500, 1000);
    let values: Vec<f32> =
        (0..rows_of * columns_of).map(|at| (at % 1009) as f32 / 1009.0).collect();
    let weight = HostTensor::from_f32(DType::F32, &[rows_of, columns_of], &values);
    let scores = |device: &Device| -> Result<[Vec<f32>; 2], Failed> {
        let w = device.upload(&weight, "weight")?;
        let before = |count| HostTensor::from_f32(DType::F32, &[count], &vec![7.0; count]);
        let row = device.upload(&before(rows_of), "rows")?;
        let column = device.upload(&before(columns_of), "columns")?;
        rows(device, Form::Mixed, &w, Some(&w), Some(&w), &row, false)?;
        columns(device, Form::Mixed, &w, Some(&w), Some(&w), &column, false)?;
        Ok([device.read(&row)?.to_f32(), device.read(&column)?.to_f32()])
    };
    let (found, expected) = (scores(&device(Options::default())?)?, scores(&Device::Cpu)?);
    for (found, expected) in found.iter().zip(expected) {
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        near("sums", found, &expected);
    }
    Ok(())
}
