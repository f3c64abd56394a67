//! The planner of products from outside: `tune-device`, its table, `devices -v`; and products whose rows are no multiple of
//! a vector.

use libtest_mimic::{Failed, Trial};
use lopper::device::{HostTensor, Random};
use lopper::gpu::{Options, backend_name};
use lopper::kernels::matmul::Engine;
use lopper::kernels::matmul::product::MatmulShape;
use lopper::kernels::matmul::tuned;
use lopper::kernels::matmul::{Destination, Input, linear};
use lopper::kernels::matrix::Matrix;
use lopper::kernels::weights;
use lopper::tensor::{DType, WeightFormat, weight_type};

use crate::machine::device;
use crate::program::{Run, command as command_of, lopper, read_json, rows, runs};

pub fn trials() -> Vec<Trial> {
    suite!("tuning":
        wrong_arguments;
        gpu: winners_are_kept_and_used, odd_rows_in_every_precision, a_model_before_it_runs)
}

fn winners_are_kept_and_used() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let tune = "tune-device --type int4-g32 --shape 4096x4096 --tokens 1 --budget 1ms --json=-";
    let run = runs(&folder, tune)?;
    let count = run.json()?.as_array().map_or(0, Vec::len);
    assert!(count == 1 && run.err.contains("not reached"), "{run}");
    // A winner of a class that devices lists, which is not what the analysis takes.
    let device = device(Options::default())?;
    let adapter = device.gpu().ok_or("a GPU")?.adapter();
    let activation = if device.capabilities().f16 { DType::F16 } else { DType::F32 };
    let product = MatmulShape {
        activation,
        bytes: if device.capabilities().f16 { 2 } else { 3 },
        output: activation,
        engine: Engine::Auto,
        weight: WeightFormat::from_label("int8-g32").ok_or("a format")?,
        rows: 4096,
        columns: 4096,
        tokens: 1,
    };
    let candidates = product.candidates(device.capabilities());
    let (first, last) = (candidates[0].label(), candidates[candidates.len() - 1].label());
    assert!(first != last, "{first} is the only candidate");
    let path = folder.path().join("tuned.json");
    let mut file = read_json(&path)?;
    file["devices"][tuned::key(adapter)][product.class()] = last.clone().into();
    std::fs::write(&path, file.to_string())?;
    for (command, kernel, how, count) in [
        ("devices -v", &last, "by tuning", 2),
        ("devices -v --no-autotune", &first, "by analysis", 0),
    ] {
        let name = &adapter.info.name;
        let backend = backend_name(adapter.info.backend);
        let mut command = command_of(folder.path(), command);
        let run: Run = command.args(["--adapter", name, "--backend", backend]).output()?.into();
        let kernel = kernel.replace(' ', "");
        let rows = unwrapped(&run.out);
        let line = rows.iter().find(|row| row.contains("int8-g32") && row.contains(&kernel));
        let counted = run.out.contains(&format!("({count} classes tuned)"));
        let shown = line.is_some_and(|line| line.contains(&how.replace(' ', "")));
        assert!(counted && shown, "no `{kernel}` {how}: {run}");
    }
    std::fs::write(path, "{\"devices\": 3}")?;
    // What is broken is no reason not to work, nor to be written over.
    let broken = runs(&folder, "devices -v")?;
    assert!(broken.err.contains("warning: ") && broken.err.contains("tuned.json"), "{broken}");
    let flags = "--type int8-g32 --shape 256x256 --tokens 1 --device gpu";
    let kept = runs(&folder, &format!("tune-device {flags} --json=-"))?;
    assert!(kept.err.contains("is not kept") && kept.json()?[0]["winner"].is_string(), "{kept}");
    assert_eq!(std::fs::read_to_string(folder.path().join("tuned.json"))?, "{\"devices\": 3}");
    Ok(())
}

/// --autotune tunes what the model needs and was never tuned, once, and what it generates stays the same.
fn a_model_before_it_runs() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let generate = "generate embedded:nano-llama --prompt The -n 6 --device gpu";
    let plain = runs(&folder, generate)?;
    let tuned = lopper(&folder, &format!("{generate} --autotune 20s"))?;
    let again = lopper(&folder, &format!("{generate} --autotune 20s"))?;
    assert!(folder.path().join("tuned.json").exists(), "{tuned}");
    assert_eq!([&tuned.out, &again.out], [&plain.out; 2]);
    assert!(tuned.err.contains("tuned"), "{tuned}");
    assert!(!again.err.contains("tuned"), "{again}");
    Ok(())
}

fn wrong_arguments() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let table = "
        tune-device --type int4 => int4
        tune-device --type int4-g24 => int4-g24
        tune-device --type f16-g32 => f16-g32
        tune-device --shape 4096 => 4096x4096
        tune-device --shape 0x8 => 0x8
        tune-device --device cpu => a GPU
        inspect embedded:nano-llama --autotune 1s => --autotune
    ";
    for (arguments, said) in rows(table) {
        lopper(&folder, arguments)?.refused(2, said);
    }
    Ok(())
}

/// Rows of columns that are no multiple of four, in both types of activations: against sums in f64.
fn odd_rows_in_every_precision() -> Result<(), Failed> {
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
                let bytes = if dtype == DType::F16 { 2 } else { 3 };
                let input = Input::new(device.upload(&host, "x")?, columns, bytes);
                let new = Destination::New(DType::F32);
                let result = linear(&device, &input, &matrix, None, new)?;
                let (result, x) = (device.read(&result)?.to_f32(), host.to_f32());
                for (place, found) in result.iter().enumerate() {
                    let (token, row) = (place / ROWS, place % ROWS);
                    let line = x[token * columns..].iter().zip(&weight[row * columns..]);
                    let products = line.take(columns).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let expected: f64 = products.sum();
                    // Activations in two bytes lose 2^-15 of a block's largest magnitude at most.
                    let close = (f64::from(*found) - expected).abs() <= 1e-3;
                    let at = || format!("{name}, {dtype}, token {token}, row {row}");
                    assert!(close, "{}: {found}, not {expected}", at());
                }
            }
        }
    }
    Ok(())
}

/// The rows of the tables in a text, their cells joined again where they were broken, and those that stand under their rows behind them,
/// without blanks.
fn unwrapped(text: &str) -> Vec<String> {
    let (mut starts, mut rows): (Vec<usize>, Vec<Vec<String>>) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let places: Vec<char> = line.chars().collect();
        if line.starts_with("--") {
            let begins = |place: &usize| *place == 0 || places[place - 1] == ' ';
            starts =
                (0..places.len()).filter(|place| places[*place] == '-' && begins(place)).collect();
            continue;
        }
        if !line.starts_with(' ') {
            rows.push(vec![String::new(); starts.len() + 1]);
        }
        let Some(row) = rows.last_mut() else { continue };
        let under = row.last_mut().expect("a row has a cell more than columns");
        if line.starts_with("  kernel: ") || (line.starts_with("    ") && !under.is_empty()) {
            under.extend(places.iter().filter(|place| **place != ' '));
            continue;
        }
        for (index, cell) in row[..starts.len()].iter_mut().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(places.len());
            let part = places.get(starts[index]..end.min(places.len())).unwrap_or(&[]);
            cell.extend(part.iter().filter(|place| **place != ' '));
        }
    }
    rows.into_iter().map(|row| row.concat()).collect()
}
