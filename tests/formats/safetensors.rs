//! Safetensors: what is written is read back, in one file or in shards; writers fail without a trace.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use libtest_mimic::Trial;
use lopper::error::Error;
use lopper::formats::Source;
use lopper::formats::gguf::{self, GgmlType, NewGgufTensor};
use lopper::formats::safetensors::{NewTensor, Safetensors, write_file, write_folder};
use lopper::tensor::DType;
use proptest::prelude::*;

use super::gguf::{noise_bytes, runner};

pub fn trials() -> Vec<Trial> {
    suite!("formats":
        safetensors_round_trip, safetensors_shards, safetensors_wide_elements_first,
        writers_ask_once_and_leave_no_half_file, stored_tensors_become_packed,
        safetensors_headers_of_any_length)
}

/// The length of a header, which a file begins with, may look like the beginning of another kind of file: 640 like a pickle's.
fn safetensors_headers_of_any_length() {
    let folder = tempfile::tempdir().unwrap();
    for length in (64usize..2048).step_by(8) {
        let mut header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.to_string();
        header += &" ".repeat(length - header.len());
        let mut bytes = (length as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.push(7);
        let path = folder.path().join("m.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let file = Safetensors::open(Source::open(&path).unwrap()).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["a"], "{length}");
    }
}

fn tensor<'a>(name: &str, dtype: DType, shape: &[usize], bytes: &'a [u8]) -> NewTensor<'a> {
    NewTensor {
        name: name.to_string(),
        dtype,
        shape: shape.to_vec(),
        data: Box::new(|| Ok(bytes.to_vec())),
    }
}

fn open_safetensors(path: &Path) -> Safetensors {
    Safetensors::open(Source::open(path).unwrap()).unwrap()
}

const DTYPES: [DType; 4] = [DType::F32, DType::F16, DType::Bf16, DType::U32];

fn safetensors_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let shape = prop::collection::vec(0..5usize, 0..4);
    let strategy = (prop::collection::vec((0..4usize, shape, any::<u64>()), 0..8), 1..200u64);
    let property = |(tensors, max_shard): (Vec<(usize, Vec<usize>, u64)>, u64)| {
        let folder = tempfile::tempdir_in(&folder).unwrap();
        let mut made = Vec::new();
        for (index, (dtype, shape, seed)) in tensors.into_iter().enumerate() {
            let length = shape.iter().product::<usize>() * DTYPES[dtype].size();
            let name = format!("layer \"{}\".é", 9 - index);
            made.push((name, DTYPES[dtype], shape, noise_bytes(seed, length)));
        }
        let new = made.iter().map(|(name, dtype, shape, bytes)| tensor(name, *dtype, shape, bytes));
        write_folder(folder.path(), new.collect(), max_shard).unwrap();
        let file = Safetensors::open_folder(folder.path()).unwrap();
        prop_assert!(file.names().eq(made.iter().rev().map(|row| row.0.as_str())));
        for (name, dtype, shape, bytes) in &made {
            let tensor = file.get(name).unwrap();
            prop_assert_eq!((tensor.ty.name(), &tensor.shape), (dtype.name(), shape));
            prop_assert_eq!(&tensor.bytes().unwrap()[..], &bytes[..]);
        }
        Ok(())
    };
    runner().run(&strategy, property).unwrap();
}

fn safetensors_shards() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise_bytes(1, 400);
    let new = |name, elements: usize| tensor(name, DType::F32, &[elements], &bytes[..4 * elements]);
    // At most 64 bytes: [c b] [huge] [a]
    let tensors = vec![new("c", 10), new("b", 6), new("huge", 100), new("a", 1)];
    let written = write_folder(folder.path(), tensors, 64).unwrap();
    let files: Vec<PathBuf> = [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    .map(|file| folder.path().join(file))
    .into();
    assert_eq!(written, files);
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&files[3]).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 468);
    assert_eq!(index["weight_map"]["b"], "model-00001-of-00003.safetensors");
    assert_eq!(index["weight_map"]["a"], "model-00003-of-00003.safetensors");
    let model = Safetensors::open_folder(folder.path()).unwrap();
    assert!(model.names().eq(["a", "b", "c", "huge"]));
    assert_eq!(*model.get("huge").unwrap().bytes().unwrap(), bytes[..400]);
    assert_eq!(model.get("huge").unwrap().source.path(), files[1]);
    assert_eq!(model.sources().len(), 3);
}

fn safetensors_wide_elements_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let bytes = noise_bytes(2, 12);
    let narrow = tensor("narrow", DType::F16, &[1], &bytes[..2]);
    let wide = tensor("wide", DType::F32, &[3], &bytes);
    write_file(&path, vec![narrow, wide]).unwrap();
    let text = std::fs::read(&path).unwrap();
    // As its own crate reads it: metadata, order, data at a multiple of 8.
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&text).unwrap();
    assert_eq!(header % 8, 0);
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(metadata.offset_keys(), ["wide", "narrow"]);
    let file = open_safetensors(&path);
    assert_eq!(*file.get("narrow").unwrap().bytes().unwrap(), bytes[..2]);
}

fn writers_ask_once_and_leave_no_half_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    std::fs::write(&path, "before").unwrap();
    let asked = RefCell::new(Vec::new());
    let data = |name: &'static str| -> Box<dyn Fn() -> lopper::error::Result<Vec<u8>> + '_> {
        let asked = &asked;
        Box::new(move || {
            asked.borrow_mut().push(name);
            let why = "it was asked to".to_string();
            match name {
                "fails" => Err(Error::CheckFailed(1, 1)),
                "short" => Err(Error::Argument {
                    argument: why.clone(),
                    expected: why.clone(),
                    found: why,
                }),
                _ => Ok(vec![0; 4]),
            }
        })
    };
    let (dtype, ty, shape) = (DType::F32, GgmlType::F32, vec![1]);
    for last in ["fails", "short", "ends"] {
        let names = ["first", "second", last];
        let new = names.map(|name| NewTensor {
            name: name.to_string(),
            dtype,
            shape: shape.clone(),
            data: data(name),
        });
        assert_eq!(write_file(&path, new.into()).is_ok(), last == "ends");
        assert_eq!(asked.take(), names);
        assert_eq!(std::fs::read(&path).unwrap() == b"before", last != "ends");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");
    }
    std::fs::write(&path, "before").unwrap();
    for last in ["fails", "ends"] {
        let names = ["first", last];
        let new = names.map(|name| NewGgufTensor {
            name: name.to_string(),
            ty,
            shape: shape.clone(),
            data: data(name),
        });
        assert_eq!(gguf::write(&path, &[], new.into()).is_ok(), last == "ends");
        assert_eq!(asked.take(), names);
        assert_eq!(std::fs::read(&path).unwrap() == b"before", last != "ends");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");
    }
}

fn stored_tensors_become_packed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let values: Vec<u8> = [1.5f32, -2.0, 0.25, 7.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let new = |name, dtype, shape: &[usize]| {
        let length = shape.iter().product::<usize>() * DType::size(dtype);
        let bytes = &values[..length];
        tensor(name, dtype, shape, bytes)
    };
    let tensors = vec![
        new("vector", DType::F32, &[3]),
        new("matrix", DType::F32, &[2, 2]),
        new("codes", DType::U32, &[2, 2]),
        new("cube", DType::F32, &[1, 2, 2]),
        new("scalar", DType::F32, &[]),
        new("nothing", DType::F32, &[4, 0]),
        new("half", DType::Bf16, &[1, 3]),
    ];
    write_file(&path, tensors).unwrap();
    let file = open_safetensors(&path);
    let packed = |name: &str| file.get(name).unwrap().to_packed();
    let vector = packed("vector").unwrap();
    assert_eq!((vector.rows, vector.columns, vector.to_f32()), (1, 3, vec![1.5, -2.0, 0.25]));
    assert_eq!(packed("matrix").unwrap().to_f32(), [1.5, -2.0, 0.25, 7.0]);
    assert_eq!(packed("half").unwrap().to_f32(), [0.0, 1.5, 0.0]);
    for (name, found) in [
        ("codes", "u32"),
        ("cube", "shape [1, 2, 2]"),
        ("scalar", "shape []"),
        ("nothing", "shape [4, 0]"),
    ] {
        let error = packed(name).unwrap_err().to_string();
        assert!(error.ends_with(&format!("found {found}")), "{error}");
    }
}
