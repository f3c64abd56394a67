//! Types whose codes are levels: ternary, NF4, FP4, FP8, MXFP4, NVFP4. Against NumPy's, and through the whole program.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random};
use lopper::gpu::Options;
use lopper::kernels::matmul::{Destination, Input, linear};
use lopper::kernels::matrix::Matrix;
use lopper::methods::quantize::Grid;
use lopper::methods::quantize::rtn::rtn;
use lopper::methods::quantize::{Scheme, level_type, prescribed_group_size};
use lopper::tensor::{DType, Packed, codebook, minifloat};

use crate::machine::on_each;
use crate::numbers::{Known, Within, assert_close};
use crate::program::{NANO, SHORT, TEXT, lopper, read_json, runs};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("levels":
        minifloats, bad_schemes, not_finite, through_the_program, a_users_codebook, bad_codebooks,
        grids_by_name;
        gpu: codebooks_on_the_gpu);
    for grid in Grid::LEVELED {
        let name = format!("levels::{}", grid.name());
        trials.extend(on_each(&name, move |device| like_numpy(device, grid)));
    }
    trials
}

fn scheme(grid: Grid) -> Result<Scheme, Failed> {
    let ty = level_type(grid).ok_or("a grid of levels has a type")?;
    Ok(Scheme {
        grid,
        bits: ty.bits,
        group_size: prescribed_group_size(ty).unwrap_or(32),
        ty: None,
    })
}

/// assets/fixtures/levels.py, written apart from this project's code, gives the same numbers to the last bit.
fn like_numpy(device: &Device, grid: Grid) -> Result<(), Failed> {
    let known = Known::open("assets/fixtures/levels.safetensors")?;
    let weight = Packed::from_f32(&known.floats("weight")?, 6, 160);
    let expected = known.floats(grid.name())?;
    let found = rtn(device, &weight, scheme(grid)?, "weight")?.to_f32();
    assert_close(grid.name(), &found, &expected, Within::Each(0.0));
    Ok(())
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
            let same = back == code || !value.is_finite();
            assert!(same, "E{exponent}M{mantissa}: {code} came back as {back}");
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
        let scheme = Scheme { grid, bits, group_size, ty: None };
        scheme.format().err().map(|bad| (bad.field, bad.expected))
    };
    let said = |field, text: &str| Some((field, text.to_string()));
    assert_eq!(told(Grid::Nf4, 3, 32), said("bits", "4 for nf4"));
    assert_eq!(told(Grid::Mxfp4, 4, 64), said("group_size", "32 for mxfp4"));
    assert_eq!(told(Grid::Nvfp4, 4, 32), said("group_size", "16 for nvfp4"));
    assert_eq!(told(Grid::Ternary, 2, 48).map(|bad| bad.0), Some("group_size"));
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
            let found = rtn(&Device::Cpu, &weight, scheme(grid)?, "w");
            let error = found.expect_err("not finite").to_string();
            assert!(error.contains("row 1, column 5"), "{}: {error}", grid.name());
        }
    }
    Ok(())
}

/// A model that a command makes is opened again as it is, and measures the same; its perplexity.
fn measured_twice(folder: &Path, command: &str, out: &str) -> Result<f64, Failed> {
    runs(folder, &format!("{command} --device cpu --out {out}"))?;
    let manifest = read_json(folder.join(out).join("manifest.json"))?;
    let eval = format!("eval {out}/packed --ppl {TEXT} --device cpu {SHORT} --json=-");
    let report = runs(folder, &eval)?.json()?;
    let before = manifest["stages"][0]["figures"]["perplexity"]["value"].as_f64();
    let (before, after) = (before.ok_or("a figure")?, &report["perplexity"]["value"]);
    let near = |after: f64| (before / after - 1.0).abs() < 1e-6;
    assert!(after.as_f64().is_some_and(near), "{out}: {before}, then {after}");
    Ok(before)
}

fn through_the_program() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for grid in Grid::LEVELED {
        let name = level_type(grid).map_or("", |ty| ty.name);
        let command = format!("quantize {NANO} --type {name} {SHORT}");
        let perplexity = measured_twice(folder.path(), &command, name)?;
        // Rounding to three values without training ruins a model; the others cost little.
        assert!(perplexity < 70.0 || grid == Grid::Ternary, "{name}: {perplexity}");
    }
    Ok(())
}

/// Entries of no pattern, in no order, as many as asked.
fn entries(count: usize) -> Vec<f32> {
    let mut random = Random::new(77);
    random.values(count, 3.0)
}

/// Codes of 1 to 8 bits, of books that fill them or not: the GPU finds the CPU's codes, and the products agree with the
/// reference.
fn codebooks_on_the_gpu() -> Result<(), Failed> {
    let runner = crate::machine::open(Options { checked: true, ..Options::default() })?;
    let device = Device::Checked(runner);
    for count in [2, 3, 7, 16, 27, 64, 100, 256] {
        let ty = codebook(&entries(count))?;
        let weight = Packed::from_f32(&Random::new(5).values(24 * 160, 0.1), 24, 160);
        let scheme = Scheme { grid: Grid::Codebook, bits: ty.bits, group_size: 32, ty: Some(ty) };
        let packed = rtn(&device, &weight, scheme, "w")?;
        let same = packed == rtn(&Device::Cpu, &weight, scheme, "w")?;
        assert!(same, "{count} entries: not the CPU's codes");
        let matrix = Matrix::upload(&device, &packed, "w")?;
        for tokens in [1, 3, 40] {
            let x = HostTensor::from_f32(DType::F32, &[tokens, 160], &entries(tokens * 160));
            // `checked` compares with the reference.
            let input = Input::new(device.upload(&x, "x")?, 160, 2);
            let new = Destination::New(DType::F32);
            linear(&device, &input, &matrix, None, new)?;
        }
    }
    Ok(())
}

fn a_users_codebook() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let book: Vec<String> = entries(27).iter().map(|entry| format!("{entry:?}")).collect();
    let recipe = format!(
        "model = \"{NANO}\"\n[[stage]]\nkind = \"quantize\"\nbits = 5\ngrid = \"codebook\"\ncodebook = [{}]\n[evaluate]\ntext = \"{}\"\nctx = 128\nmax_tokens = 1024\n",
        book.join(", "),
        TEXT
    );
    std::fs::write(folder.path().join("r.toml"), recipe)?;
    let perplexity = measured_twice(folder.path(), "compress r.toml", "made")?;
    assert!(perplexity < 70.0, "{perplexity}");
    Ok(())
}

/// A grid's name is enough: it brings its bits and its group size.
fn grids_by_name() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (grid, lines) in [
        ("nvfp4", ["bits = 4", "group_size = 16"]),
        ("fp8-e5m2", ["bits = 8", "group_size = 32"]),
        ("zero-point", ["bits = 4", "group_size = 32"]),
    ] {
        let arguments = format!("quantize {NANO} --grid {grid} --print-recipe");
        let recipe = runs(&folder, &arguments)?.out;
        assert!(lines.iter().all(|line| recipe.contains(line)), "{grid}: {recipe}");
    }
    Ok(())
}

fn bad_codebooks() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let grid = "grid = \"codebook\"\ncodebook =";
    for (keys, said) in [
        (format!("bits = 2\n{grid} [0.0, nan, 1.0]"), "NaN as entry 1"),
        (format!("bits = 2\n{grid} [0.0, inf, 1.0]"), "inf as entry 1"),
        (format!("bits = 8\n{grid} {:?}", entries(257)), "257 entries"),
        (format!("bits = 1\n{grid} [0.5]"), "1 entries"),
        (format!("bits = 1\n{grid} [0.0, 0.0]"), "no entry but 0"),
        (format!("bits = 3\n{grid} [-1.0, 0.0, 1.0]"), "expected 2"),
        ("bits = 2\ngrid = \"codebook\"".into(), "stage.codebook"),
        ("bits = 4\ngrid = \"nf4\"\ncodebook = [-1.0, 1.0]".into(), "stage.codebook"),
    ] {
        let text = format!("model = \"{NANO}\"\n[[stage]]\nkind = \"quantize\"\n{keys}\n");
        std::fs::write(folder.path().join("r.toml"), text)?;
        let run = lopper(&folder, "compress r.toml --device cpu --out made")?;
        run.refused(2, said);
        assert!(!folder.path().join("made").exists(), "{keys}");
    }
    Ok(())
}
