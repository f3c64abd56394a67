//! Weights of which two of every four columns are stored: round trips, cuts, products, and through the whole program.

use std::path::Path;

use half::f16;
use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random};
use lopper::gpu::Options;
use lopper::kernels::matmul::{Destination, Input, linear};
use lopper::kernels::matrix::Matrix;
use lopper::kernels::weights;
use lopper::model::codes_survive;
use lopper::tensor::{DType, Packed, Sparsity, WHOLE_ROW, WeightFormat, weight_type};

use crate::program::{NANO, SHORT, TEXT, lopper, read_json, runs};

const PATTERN: Sparsity = Sparsity::TWO_OF_FOUR;
const TYPES: [&str; 3] = ["f16_2of4", "int8_2of4", "int4_2of4"];

pub fn trials() -> Vec<Trial> {
    suite!("patterns":
        round_trips, beyond_the_pattern, columns, sizes, through_the_program, refused,
        broken_files;
        gpu: products)
}

/// A random matrix of each type, with groups of 32 where there are any.
fn random(name: &str, rows: usize, columns: usize) -> Result<Packed, Failed> {
    let ty = weight_type(name).ok_or("a type of the table")?;
    Ok(weights::random(&mut Random::new(7), &weights::variant(ty), rows, columns, 32))
}

/// Without its pattern and back a matrix is the same, and its rows read alike whichever way.
fn round_trips() -> Result<(), Failed> {
    for name in TYPES {
        for columns in [0, 1, 3, 97, 576] {
            let packed = random(name, 5, columns)?;
            let dense = packed.dense();
            assert_eq!(dense.format.label(), packed.format.label().replace("_2of4", ""));
            assert!(dense.sparse(PATTERN) == Ok(packed.clone()), "{name}, {columns} columns");
            assert_eq!(packed.first_beyond(PATTERN), None);
            assert_eq!(packed.first_overfull(), None);
            let values = packed.to_f32();
            assert_eq!(values, dense.to_f32(), "{name}, {columns} columns");
            for (place, value) in values.iter().enumerate() {
                assert_eq!(packed.value(place / columns, place % columns), *value, "{name}");
            }
            let zeros = values.iter().filter(|value| **value == 0.0).count();
            assert!(zeros >= 5 * 2 * (columns / 4), "{name}: {zeros} zeros");
            assert!(packed.slice_rows(1, 4) == packed.pick_rows(&[1, 2, 3]), "rows of {name}");
            assert_eq!(packed.pick_rows(&[4, 0]).dense(), dense.pick_rows(&[4, 0]));
        }
    }
    Ok(())
}

/// A value too many is named by its place, and -0.0 is none.
fn beyond_the_pattern() -> Result<(), Failed> {
    let mut values = vec![0.0f32; 3 * 40];
    (values[40 + 20], values[40 + 22]) = (1.0, -2.0);
    values[40 + 21] = -0.0;
    let half = |values: &[f32]| {
        let bits = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes());
        Packed::from_16bit(WeightFormat::f16(), &bits.collect::<Vec<u8>>(), 3, 40)
    };
    assert!(half(&values).sparse(PATTERN).is_ok(), "two of four");
    values[40 + 23] = 3.0;
    let weight = half(&values);
    assert_eq!(weight.sparse(PATTERN), Err((1, 23)));
    assert_eq!(weight.first_beyond(PATTERN), Some((1, 23)));
    // Of five columns the last is a group of its own.
    let five = Packed::from_f32(&[1.0, 1.0, 0.0, 0.0, 1.0], 1, 5);
    assert_eq!(five.first_beyond(PATTERN), None);
    Ok(())
}

/// Columns go by whole groups of four, and by whole groups that share a scale.
fn columns() -> Result<(), Failed> {
    for name in TYPES {
        let packed = random(name, 3, 160)?;
        let order: Vec<usize> = (32..64).chain(96..160).collect();
        let picked = packed.pick_columns(&order);
        assert!(picked.dense() == packed.dense().pick_columns(&order), "{name}");
        let scaled = packed.format.ty.has_scales();
        assert_eq!(codes_survive(packed.format, 4), !scaled, "{name}");
        assert!(codes_survive(packed.format, 32) && !codes_survive(packed.format, 2), "{name}");
        let rows = WeightFormat { group_size: WHOLE_ROW, ..packed.format };
        assert!(codes_survive(rows, 8) && !codes_survive(rows, 6), "{name}");
    }
    Ok(())
}

/// A bit a weight for the pattern, and half the codes.
fn sizes() -> Result<(), Failed> {
    for (label, bits) in [
        ("f16_2of4", 9.0),
        ("int8_2of4-g32", 5.5),
        ("int4_2of4-g32", 3.5),
        ("int4_2of4-g128", 3.125),
    ] {
        let format = WeightFormat::from_label(label).ok_or(label)?;
        assert_eq!(format.label(), label);
        let weights = (64 * 4096) as f64;
        assert_eq!(8.0 * format.unpadded_bytes(64, 4096) as f64 / weights, bits, "{label}");
        assert_eq!(8.0 * format.bytes(64, 4096) as f64 / weights, bits, "{label} as it lies");
    }
    Ok(())
}

/// Whichever kernel computes a product, few tokens or many: `checked` compares with the reference.
fn products() -> Result<(), Failed> {
    let device =
        Device::Checked(crate::machine::open(Options { checked: true, ..Options::default() })?);
    for name in TYPES {
        let matrix = Matrix::upload(&device, &random(name, 24, 160)?, "w")?;
        for tokens in [1, 3, 40] {
            let values = Random::new(9).values(tokens * 160, 1.0);
            let x = HostTensor::from_f32(DType::F32, &[tokens, 160], &values);
            let input = Input::new(device.upload(&x, "x")?, 160, 2);
            linear(&device, &input, &matrix, None, Destination::New(DType::F32))?;
        }
    }
    Ok(())
}

/// A copy of nano-llama, the two smallest of every four weights of its blocks zero.
fn pruned(folder: &Path) -> Result<(), Failed> {
    let (from, to) = (Path::new("assets/nano-llama"), folder.join("pruned"));
    std::fs::create_dir(&to)?;
    for file in std::fs::read_dir(from)?.flatten() {
        std::fs::copy(file.path(), to.join(file.file_name()))?;
    }
    let mut bytes = std::fs::read(from.join("model.safetensors"))?;
    let header = u64::from_le_bytes(*bytes.first_chunk().ok_or("a header")?) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header])?;
    for (name, tensor) in tensors.as_object().ok_or("tensors")? {
        if !name.ends_with("proj.weight") {
            continue;
        }
        let place = |index: usize| tensor["data_offsets"][index].as_u64().ok_or("an offset");
        let range = 8 + header + place(0)? as usize..8 + header + place(1)? as usize;
        for four in bytes[range].chunks_exact_mut(8) {
            // Of f16 the bits without the sign rise with the magnitude.
            let size = |at: usize| u16::from_le_bytes([four[2 * at], four[2 * at + 1]]) & 0x7fff;
            let mut order = [0, 1, 2, 3];
            order.sort_by_key(|at| size(*at));
            order[..2].iter().for_each(|at| four[2 * at..2 * at + 2].fill(0));
        }
    }
    Ok(std::fs::write(to.join("model.safetensors"), bytes)?)
}

/// Codes without zeros compute what codes with them do, in every kind of folder that holds them; and a pattern of a recipe is
/// the type's.
fn through_the_program() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    pruned(folder.path())?;
    let figure = |arguments: &str, out: &str| -> Result<f64, Failed> {
        runs(&folder, &format!("{arguments} --device cpu {SHORT} --out {out}"))?;
        let manifest = read_json(folder.path().join(out).join("manifest.json"))?;
        let figure = manifest["stages"][0]["figures"]["perplexity"]["value"].as_f64();
        Ok(figure.ok_or("a figure")?)
    };
    let eval = |model: &str| -> Result<f64, Failed> {
        let eval = format!("eval {model} --ppl {TEXT} --device cpu {SHORT} --json=-");
        let report = runs(&folder, &eval)?.json()?;
        Ok(report["perplexity"]["value"].as_f64().ok_or("a figure")?)
    };
    let near = |what: &str, found: f64, expected: f64| {
        assert!((found / expected - 1.0).abs() < 1e-6, "{what}: {found}, not {expected}");
    };
    let whole = eval("pruned")?;
    near("f16_2of4", figure("quantize pruned --type f16_2of4", "half")?, whole);
    near("f16_2of4 opened", eval("half/packed")?, whole);
    let dense = figure("quantize pruned --type int4 --formats packed", "dense")?;
    let kept = figure("quantize pruned --type int4_2of4 --formats packed,gguf,hf", "kept")?;
    near("int4_2of4", kept, dense);
    near("int4_2of4 opened", eval("kept/packed")?, dense);
    near("Q4_0 with zeros", eval("kept/model.gguf")?, dense);
    assert!((eval("kept/hf")? / dense - 1.0).abs() < 1e-3, "f16 of codes with zeros");
    let warnings = read_json(folder.path().join("kept/manifest.json"))?["warnings"].to_string();
    let said = "14 tensors are int4_2of4-g32, which packed/ alone holds: model.gguf and hf";
    assert!(warnings.contains(said), "{warnings}");
    let bytes = |out: &str| -> Result<u64, Failed> {
        let path = folder.path().join(out).join("packed/model.safetensors");
        Ok(path.metadata()?.len())
    };
    assert!(bytes("kept")? < bytes("dense")?, "two codes of four take less");
    let recipe = "quantize pruned --type int4_2of4 --print-recipe";
    let recipe = runs(&folder, recipe)?.out;
    let lines = ["bits = 4", "grid = \"signed-max\"", "pattern = \"2:4\""];
    assert!(lines.iter().all(|line| recipe.contains(line)), "{recipe}");
    let recipe = runs(&folder, "quantize pruned --type f16 --pattern 2:4 --print-recipe")?.out;
    assert!(recipe.contains("type = \"f16_2of4\""), "{recipe}");
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run =
        lopper(&folder, &format!("quantize {NANO} --type int4_2of4 --device cpu --out made"))?;
    run.refused(2, "layers.0.self_attn.q_proj.weight & at most 2 of every 4 columns other than 0 & --pattern 2:4 first");
    for (flags, said) in [
        ("--type f16", "type"),
        ("--type f16_2of4 --group-size 32", "none beside type f16_2of4"),
        ("--type int4_2of4 --pattern 2:4", "none beside type int4_2of4"),
        ("--bits 4 --pattern 3:4", "expected 2:4"),
        ("--bits 4 --pattern 2:4", "f16_2of4, int8_2of4, int4_2of4"),
        ("--type nf4 --pattern 2:4", "none beside nf4"),
        ("--type int4_2of4 --engine lut", "found int4_2of4"),
    ] {
        let command = format!("quantize {NANO} {flags} --device cpu --out made");
        lopper(&folder, &command)?.refused(2, said);
        assert!(!folder.path().join("made").exists(), "{flags}");
    }
    Ok(())
}

/// A packed file in which three of four columns are marked as kept, or one behind the end of its row.
fn broken_files() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    pruned(folder.path())?;
    runs(
        &folder,
        "quantize pruned --type f16_2of4 --formats packed --device cpu --out made --no-eval",
    )?;
    let path = folder.path().join("made/packed/model.safetensors");
    let bytes = std::fs::read(&path)?;
    let header = u64::from_le_bytes(*bytes.first_chunk().ok_or("a header")?) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header])?;
    let name = "model.layers.1.mlp.down_proj.weight";
    let start = tensors[&format!("{name}.codes")]["data_offsets"][0].as_u64().ok_or("an offset")?;
    let start = 8 + header + start as usize;
    // A row of 192 columns has six words that say which are kept, and two unused. Columns 0 to 3 are bits 0, 8, 16, 24.
    let mut broken = bytes.clone();
    (0..4).for_each(|byte| broken[start + 4 * 2 + byte] |= 1);
    std::fs::write(&path, &broken)?;
    let eval = format!("eval made/packed --ppl {TEXT} --device cpu {SHORT}");
    let said = "at most 2 of every 4 columns kept & row 0, column 66";
    lopper(&folder, &eval)?.refused(2, &format!("{name} & {said}"));
    Ok(())
}
