//! The planner of products from outside: `tune-device`, its table, `devices -v`; and products whose rows are no multiple of
//! a vector.

use libtest_mimic::{Failed, Trial};
use lopper::device::{HostTensor, Matrix, Random};
use lopper::gpu::Options;
use lopper::kernels::matmul::linear;
use lopper::kernels::weights;
use lopper::tensor::{DType, weight_type};

use crate::cli::lopper;
use crate::machine::{device, gpu_trial};

pub fn trials() -> Vec<Trial> {
    vec![
        gpu_trial("tuning::winners_are_kept_and_used".into(), winners_are_kept),
        gpu_trial("tuning::odd_rows_in_every_precision".into(), odd_rows),
        Trial::test("tuning::wrong_arguments", wrong_arguments),
    ]
}

fn winners_are_kept() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let tune = "tune-device --type int4-g32 --shape 4096x4096 --tokens 1 --budget 1ms --json=-";
    let run = lopper(folder.path(), tune)?;
    let report: serde_json::Value = serde_json::from_str(&run.out)?;
    let count = report.as_array().map_or(0, Vec::len);
    if run.code != Some(0) || count != 1 || !run.err.contains("not reached") {
        return Err(format!("{:?}: {}{}", run.code, run.out, run.err).into());
    }
    let (winner, analytic) = (&report[0]["winner_us"], &report[0]["analytic_us"]);
    if winner.as_f64() > analytic.as_f64() {
        return Err(format!("{winner} us is no better than {analytic}").into());
    }
    // The first product has f32 activations: what devices lists is another class, but the count is told.
    let shown = lopper(folder.path(), "devices -v")?;
    if !shown.out.contains("(1 classes tuned)") {
        return Err(shown.out.into());
    }
    let ignored = lopper(folder.path(), "devices -v --no-autotune")?;
    if !ignored.out.contains("(0 classes tuned)") {
        return Err(ignored.out.into());
    }
    std::fs::write(folder.path().join("tuned.json"), "{\"devices\": 3}")?;
    let broken = lopper(folder.path(), "devices -v")?;
    if broken.code == Some(0) || !broken.err.contains("tuned.json") {
        return Err(format!("{:?}: {}", broken.code, broken.err).into());
    }
    Ok(())
}

fn wrong_arguments() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (arguments, wanted) in [
        ("tune-device --type int4", "int4"),
        ("tune-device --type int4-g24", "int4-g24"),
        ("tune-device --type f16-g32", "f16-g32"),
        ("tune-device --shape 4096", "4096x4096"),
        ("tune-device --shape 0x8", "0x8"),
        ("tune-device --device cpu", "a GPU"),
    ] {
        let run = lopper(folder.path(), arguments)?;
        if run.code == Some(0) || !run.err.contains(wanted) {
            return Err(format!("{arguments}: {:?} {}", run.code, run.err).into());
        }
    }
    Ok(())
}

/// Rows of columns that are no multiple of four, in both types of activations: against sums in f64.
fn odd_rows() -> Result<(), Failed> {
    const ROWS: usize = 40;
    let device = device(Options::default())?;
    for name in ["f16", "int4", "uint3m"] {
        let ty = weight_type(name).ok_or("a type of the table")?;
        for (tokens, columns) in [(1, 97), (5, 131), (20, 70)] {
            let mut random = Random::new(21);
            let packed = weights::random(&mut random, &weights::variant(ty), ROWS, columns, 32);
            let matrix = Matrix::upload(&device, &packed, "w")?;
            let (values, weight) = (random.values(tokens * columns, 1.0), packed.to_f32());
            let half = device.capabilities().f16.then_some(DType::F16);
            for dtype in [DType::F32].into_iter().chain(half) {
                let host = HostTensor::from_f32(dtype, &[tokens, columns], &values);
                let result = linear(
                    &device,
                    &device.upload(&host, "x")?,
                    &matrix,
                    None,
                    DType::F32,
                )?;
                let (result, x) = (device.read(&result)?.to_f32(), host.to_f32());
                for (place, found) in result.iter().enumerate() {
                    let (token, row) = (place / ROWS, place % ROWS);
                    let line = x[token * columns..].iter().zip(&weight[row * columns..]);
                    let products = line
                        .take(columns)
                        .map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let expected: f64 = products.sum();
                    // Activations in two bytes lose 2^-15 of a block's largest magnitude at most.
                    if (f64::from(*found) - expected).abs() > 1e-3 {
                        let at = format!("{name}, {dtype}, token {token}, row {row}");
                        return Err(format!("{at}: {found}, not {expected}").into());
                    }
                }
            }
        }
    }
    Ok(())
}
