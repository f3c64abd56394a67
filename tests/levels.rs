//! Types whose codes are levels: ternary, NF4, FP4, FP8, MXFP4, NVFP4. Against NumPy's, and through the whole program.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::formats::Source;
use lopper::formats::safetensors::Safetensors;
use lopper::gpu::Options;
use lopper::methods::quantize::rtn::rtn;
use lopper::methods::quantize::{Scheme, level_type, prescribed_group_size};
use lopper::recipe::Grid;
use lopper::tensor::{Packed, minifloat};

use crate::cli::{NANO, SHORT, lopper};
use crate::machine::gpu_trial;

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        Trial::test("levels::minifloats", minifloats),
        Trial::test("levels::bad_schemes", bad_schemes),
        Trial::test("levels::not_finite", not_finite),
        Trial::test("levels::through_the_program", through_the_program),
    ];
    for grid in Grid::LEVELED {
        let name = grid.name();
        trials.push(Trial::test(format!("levels::cpu::{name}"), move || {
            like_numpy(&Device::Cpu, grid)
        }));
        trials.push(gpu_trial(format!("levels::gpu::{name}"), move || {
            like_numpy(&crate::machine::device(Options::default())?, grid)
        }));
    }
    trials
}

fn scheme(grid: Grid) -> Result<Scheme, Failed> {
    let ty = level_type(grid).ok_or("a grid of levels has a type")?;
    Ok(Scheme {
        grid,
        bits: ty.bits,
        group_size: prescribed_group_size(ty).unwrap_or(32),
    })
}

/// assets/fixtures/levels.py, written apart from this project's code, gives the same numbers to the last bit.
fn like_numpy(device: &Device, grid: Grid) -> Result<(), Failed> {
    let file = Safetensors::open(Source::open(Path::new(
        "assets/fixtures/levels.safetensors",
    ))?)?;
    let values = |name: &str| -> Result<Vec<f32>, Failed> {
        let tensor = file.get(name).ok_or("levels.safetensors has it")?;
        let bytes = tensor.bytes.as_chunks::<4>().0;
        Ok(bytes.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    let weight = Packed::from_f32(&values("weight")?, 6, 160);
    let expected = values(grid.name())?;
    let found = rtn(device, &weight, scheme(grid)?, "weight")?.to_f32();
    let differ: Vec<_> = (0..expected.len())
        .filter(|&i| found[i] != expected[i])
        .collect();
    match differ.first() {
        None => Ok(()),
        Some(&at) => Err(format!(
            "{} of {} differ, the first at {at}: {} instead of {}",
            differ.len(),
            found.len(),
            found[at],
            expected[at]
        )
        .into()),
    }
}

/// Values from the OCP specification's tables, and every code through its own value.
fn minifloats() -> Result<(), Failed> {
    let e2m1: Vec<f32> = (0..8).map(|code| minifloat::decode(code, 2, 1)).collect();
    assert_eq!(e2m1, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
    assert_eq!(minifloat::decode(0x7e, 4, 3), 448.0);
    assert_eq!(minifloat::decode(0x01, 4, 3), f32::powi(2.0, -9));
    assert!(minifloat::decode(0xff, 4, 3).is_nan(), "E4M3's NaN");
    assert_eq!(minifloat::decode(0x7b, 5, 2), 57_344.0);
    assert_eq!(minifloat::decode(0x01, 5, 2), f32::powi(2.0, -16));
    assert_eq!(minifloat::decode(0xfc, 5, 2), f32::NEG_INFINITY);
    for (exponent, mantissa) in [(2, 1), (4, 3), (5, 2)] {
        for code in 0..1 << (exponent + mantissa) {
            let value = minifloat::decode(code, exponent, mantissa);
            let back = minifloat::encode_magnitude(value, exponent, mantissa);
            if value.is_finite() && back != code {
                return Err(format!("E{exponent}M{mantissa}: {code} came back as {back}").into());
            }
        }
    }
    // Ties to even, saturation.
    assert_eq!(minifloat::encode_magnitude(0.25, 2, 1), 0);
    assert_eq!(minifloat::encode_magnitude(0.75, 2, 1), 2);
    assert_eq!(minifloat::encode_magnitude(5.0, 2, 1), 6);
    assert_eq!(minifloat::encode_magnitude(1e9, 4, 3), 0x7e);
    Ok(())
}

fn bad_schemes() -> Result<(), Failed> {
    let told = |grid, bits, group_size| {
        let scheme = Scheme {
            grid,
            bits,
            group_size,
        };
        scheme.format().err().map(|bad| (bad.field, bad.expected))
    };
    let said = |field, text: &str| Some((field, text.to_string()));
    assert_eq!(told(Grid::Nf4, 3, 32), said("bits", "4 for nf4"));
    assert_eq!(told(Grid::Mxfp4, 4, 64), said("group_size", "32 for mxfp4"));
    assert_eq!(told(Grid::Nvfp4, 4, 32), said("group_size", "16 for nvfp4"));
    assert_eq!(
        told(Grid::Ternary, 2, 48).map(|bad| bad.0),
        Some("group_size")
    );
    assert_eq!(told(Grid::Nf4, 4, 0), None);
    Ok(())
}

/// A weight that is not finite is named, whatever the grid.
fn not_finite() -> Result<(), Failed> {
    for grid in Grid::LEVELED {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = vec![0.5; 3 * 64];
            values[64 + 5] = bad;
            let weight = Packed::from_f32(&values, 3, 64);
            match rtn(&Device::Cpu, &weight, scheme(grid)?, "w") {
                Err(error) if error.to_string().contains("row 1, column 5") => {}
                other => return Err(format!("{}: {other:?}", grid.name()).into()),
            }
        }
    }
    Ok(())
}

/// A model in each type is written, opened again as it is, and measures the same.
fn through_the_program() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for grid in Grid::LEVELED {
        let name = level_type(grid).map_or("", |ty| ty.name);
        let run = lopper(
            folder.path(),
            &format!("quantize {NANO} --type {name} --device cpu {SHORT} --out {name}"),
        )?;
        if run.code != Some(0) {
            return Err(format!("{name}: {}{}", run.out, run.err).into());
        }
        let manifest = std::fs::read_to_string(folder.path().join(name).join("manifest.json"))?;
        let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
        let text = crate::cli::TEXT;
        let run = lopper(
            folder.path(),
            &format!("eval {name}/packed --ppl {text} --device cpu {SHORT} --json=-"),
        )?;
        let report: serde_json::Value = serde_json::from_str(&run.out)?;
        let (before, after) = (
            &manifest["stages"][0]["figures"]["perplexity"]["value"],
            &report["perplexity"]["value"],
        );
        let near = match (before.as_f64(), after.as_f64()) {
            (Some(a), Some(b)) => {
                // Rounding to three values without training ruins a model; the others cost little.
                (a / b - 1.0).abs() < 1e-6 && (a < 70.0 || grid == Grid::Ternary)
            }
            _ => false,
        };
        if !near {
            return Err(format!("{name}: {before}, then {after}: {manifest}").into());
        }
    }
    Ok(())
}
