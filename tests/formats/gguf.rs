//! GGUF: what is written is read back, blocks keep every bit, and decoding agrees with llama.cpp's.

use std::path::Path;

use libtest_mimic::Trial;
use lopper::error::Error;
use lopper::formats::gguf::{self, Array, GgmlType, Gguf, NewGgufTensor, Value};
use lopper::formats::safetensors::Safetensors;
use lopper::formats::{Source, StoredType};
use lopper::tensor::{Packed, Scale, WHOLE_ROW, WeightFormat, weight_type};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

pub fn trials() -> Vec<Trial> {
    suite!("formats":
        packed_to_blocks_and_back, blocks_to_packed_and_back, inexact_formats_are_not_packed,
        block_decoding_agrees_with_llama_cpp, block_decoding_in_words, gguf_round_trip, gguf_keeps_alignment,
        gguf_typed_lookups, gguf_refuses_what_it_cannot_hold)
}

/// Weight types, their groups, and the types of GGUF that hold them.
const BLOCKS: [(&str, u32, GgmlType); 15] = [
    ("int4", 32, GgmlType::Q4_0),
    ("uint4m", 32, GgmlType::Q4_1),
    ("int5", 32, GgmlType::Q5_0),
    ("uint5m", 32, GgmlType::Q5_1),
    ("int8", 32, GgmlType::Q8_0),
    ("q2_k", 16, GgmlType::Q2K),
    ("q3_k", 16, GgmlType::Q3K),
    ("q4_k", 32, GgmlType::Q4K),
    ("q5_k", 32, GgmlType::Q5K),
    ("q6_k", 16, GgmlType::Q6K),
    ("iq4_nl", 32, GgmlType::Iq4Nl),
    ("iq4_xs", 32, GgmlType::Iq4Xs),
    ("ternary", 256, GgmlType::Tq2_0),
    ("mxfp4", 32, GgmlType::Mxfp4),
    ("nvfp4", 16, GgmlType::Nvfp4),
];
const PLAIN: [GgmlType; 3] = [GgmlType::F32, GgmlType::F16, GgmlType::Bf16];

/// The same cases every time, and no file of failures: cases are found again by running the test again.
pub fn runner() -> TestRunner {
    let config = Config { failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn plain_format(ty: GgmlType) -> WeightFormat {
    match ty {
        GgmlType::F32 => WeightFormat::f32(),
        GgmlType::F16 => WeightFormat::f16(),
        _ => WeightFormat::bf16(),
    }
}

/// Numbers that look random and are the same every time.
fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
    }
}

pub fn noise_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut next = noise(seed);
    (0..length).map(|_| next() as u8).collect()
}

fn noise_packed(format: WeightFormat, rows: usize, columns: usize, seed: u64) -> Packed {
    let mut next = noise(seed);
    let mut packed = Packed::zeros(format, rows, columns);
    for row in 0..rows {
        for column in 0..columns {
            packed.set_code(row, column, next() as u32 & (u32::MAX >> (32 - format.ty.bits)));
        }
        if format.ty.scale == Scale::TwoLevel {
            packed.set_row_scale(row, 1.0);
        }
        for index in 0..format.super_blocks_per_row(columns) {
            let minima = matches!(format.ty.scale, Scale::SuperOffset(_));
            packed.set_super_scales(row, index, next() as u16, next() as u16 * u16::from(minima));
        }
        for group in 0..format.groups_per_row(columns) {
            let number = |next: u64| match format.ty.scale {
                Scale::SuperOffset(of) => next as u16 % (1 << of.bits),
                Scale::SuperSymmetric(of) => {
                    (next as u16 % (1 << of.bits)).wrapping_sub(1 << (of.bits - 1))
                }
                Scale::PowerOfTwo | Scale::TwoLevel => next as u16 & 0xff,
                _ => next as u16,
            };
            packed.set_group(row, group, number(next()), number(next()));
        }
    }
    packed
}

fn packed_to_blocks_and_back() {
    let kinds = BLOCKS.len() + PLAIN.len();
    let strategy = (0..kinds, 1..5usize, 1..5usize, 1..70usize, any::<u64>());
    let property = |(which, rows, blocks, columns, seed): (usize, usize, usize, usize, u64)| {
        let (format, ty, columns) = match BLOCKS.get(which) {
            Some(&(name, group_size, ty)) => {
                let format = WeightFormat { ty: weight_type(name).unwrap(), group_size };
                (format, ty, ty.block_elements() * blocks)
            }
            None => {
                let ty = PLAIN[which - BLOCKS.len()];
                (plain_format(ty), ty, columns)
            }
        };
        prop_assert_eq!(gguf::weight_format(ty), Some(format));
        prop_assert_eq!(gguf::holds(format, columns), Some(ty));
        let packed = noise_packed(format, rows, columns, seed);
        let (found, bytes) = gguf::pack(&packed).unwrap();
        prop_assert_eq!(found, ty);
        prop_assert_eq!(gguf::unpack(ty, &bytes, rows, columns).unwrap(), packed);
        Ok(())
    };
    runner().run(&strategy, property).unwrap();
}

fn blocks_to_packed_and_back() {
    let strategy = (0..BLOCKS.len() + PLAIN.len(), 1..5usize, 1..5usize, any::<u64>());
    let property = |(which, rows, blocks, seed): (usize, usize, usize, u64)| {
        let ty = BLOCKS.get(which).map_or_else(|| PLAIN[which - BLOCKS.len()], |row| row.2);
        let columns = ty.block_elements() * blocks;
        let bytes = noise_bytes(seed, rows * blocks * ty.block_bytes());
        let packed = gguf::unpack(ty, &bytes, rows, columns).unwrap();
        prop_assert_eq!(gguf::pack(&packed), Some((ty, bytes)));
        Ok(())
    };
    runner().run(&strategy, property).unwrap();
}

fn inexact_formats_are_not_packed() {
    let affine = |bits, scale, group| WeightFormat::affine(bits, scale, group).unwrap();
    let cases = [
        (affine(4, Scale::Symmetric, 64), 64),
        (affine(4, Scale::Symmetric, WHOLE_ROW), 64),
        (affine(4, Scale::ZeroPoint, 32), 64),
        (affine(3, Scale::Symmetric, 32), 64),
        (affine(8, Scale::Offset, 32), 64),
        (affine(4, Scale::Symmetric, 32), 48), // rows must be whole blocks
    ];
    for (format, columns) in cases {
        let packed = noise_packed(format, 2, columns, 1);
        assert_eq!(gguf::pack(&packed), None, "{} x {columns}", format.label());
    }
}

fn block_decoding_agrees_with_llama_cpp() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/gguf");
    let file = Gguf::open(Source::open(&folder.join("blocks.gguf")).unwrap()).unwrap();
    let expected = folder.join("blocks-expected.safetensors");
    let expected = Safetensors::open(Source::open(&expected).unwrap()).unwrap();
    assert_eq!((file.len(), expected.len()), (26, 26));
    for name in file.names() {
        let found = file.tensor(name).unwrap().to_packed().unwrap().to_f32();
        let expected = expected.get(name).unwrap().to_packed().unwrap().to_f32();
        assert_eq!(found.len(), expected.len());
        // Floats of four bits have a zero of each sign, where llama.cpp's table of integers has one.
        let one_zero = ["mxfp4", "nvfp4"].contains(&name);
        for (index, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            let found = if one_zero && found == 0.0 { 0.0 } else { found };
            assert_eq!(found.to_bits(), expected.to_bits(), "{name}[{index}]: {found} {expected}");
        }
        let tensor = file.tensor(name).unwrap();
        if gguf::weight_format(file.tensor_type(name).unwrap()) == Some(WeightFormat::f32()) {
            continue; // of codebooks of vectors, which are read only
        }
        let (ty, bytes) = gguf::pack(&tensor.to_packed().unwrap()).unwrap();
        let found = file.tensor_type(name).unwrap();
        // Both types of ternary codes are one format, which is written as the quicker of them.
        assert_eq!(ty, if found == GgmlType::Tq1_0 { GgmlType::Tq2_0 } else { found }, "{name}");
        if ty == found {
            assert!(bytes == *tensor.bytes().unwrap(), "{name} is written as it was");
        }
    }
    let words = ["a", "", "é"].map(String::from);
    assert_eq!(file.strings("test.strings").unwrap(), Some(&words[..]));
    assert_eq!(file.require_u64("test.u32").unwrap(), 7);
}

/// One block of each type by hand: where the scale, the offset, a low, a high and a fifth bit stand.
fn block_decoding_in_words() {
    let (one, half) = (0x3c00u16.to_le_bytes(), 0x3800u16.to_le_bytes());
    // Byte 1 of the nibbles: element 1 has code 3, element 17 code 9. Fifth bits: of elements 1 and 16.
    let mut nibbles = [0u8; 16];
    nibbles[1] = 0x93;
    let fifth = (1u32 << 1 | 1 << 16).to_le_bytes();
    let value = |ty, parts: &[&[u8]], column| {
        let packed = gguf::unpack(ty, &parts.concat(), 1, 32).unwrap();
        packed.value(0, column)
    };
    let q4_0 = |column| value(GgmlType::Q4_0, &[&half, &nibbles], column);
    assert_eq!([q4_0(0), q4_0(1), q4_0(17)], [-4.0, -2.5, 0.5]);
    let q4_1 = |column| value(GgmlType::Q4_1, &[&half, &one, &nibbles], column);
    assert_eq!([q4_1(0), q4_1(1), q4_1(17)], [1.0, 2.5, 5.5]);
    let q5_0 = |column| value(GgmlType::Q5_0, &[&half, &fifth, &nibbles], column);
    assert_eq!([q5_0(0), q5_0(1), q5_0(16), q5_0(17)], [-8.0, 1.5, 0.0, -3.5]);
    let q5_1 = |column| value(GgmlType::Q5_1, &[&half, &one, &fifth, &nibbles], column);
    assert_eq!([q5_1(0), q5_1(1), q5_1(16), q5_1(17)], [1.0, 10.5, 9.0, 5.5]);
    let mut bytes = [0u8; 32];
    (bytes[0], bytes[31]) = (0x80, 0x7f);
    let q8_0 = |column| value(GgmlType::Q8_0, &[&one, &bytes], column);
    assert_eq!([q8_0(0), q8_0(1), q8_0(31)], [-128.0, 0.0, 127.0]);
}

fn array() -> impl Strategy<Value = Array> {
    let finite = proptest::num::f32::NORMAL | proptest::num::f32::ZERO;
    let leaf = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4).prop_map(Array::U8),
        prop::collection::vec(any::<i8>(), 0..4).prop_map(Array::I8),
        prop::collection::vec(any::<u16>(), 0..4).prop_map(Array::U16),
        prop::collection::vec(any::<i16>(), 0..4).prop_map(Array::I16),
        prop::collection::vec(any::<u32>(), 0..4).prop_map(Array::U32),
        prop::collection::vec(any::<i32>(), 0..4).prop_map(Array::I32),
        prop::collection::vec(finite, 0..4).prop_map(Array::F32),
        prop::collection::vec(any::<bool>(), 0..4).prop_map(Array::Bool),
        prop::collection::vec(".{0,5}", 0..4).prop_map(Array::String),
        prop::collection::vec(any::<u64>(), 0..4).prop_map(Array::U64),
        prop::collection::vec(any::<i64>(), 0..4).prop_map(Array::I64),
        prop::collection::vec(proptest::num::f64::NORMAL, 0..4).prop_map(Array::F64),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Array::Array))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        proptest::num::f32::NORMAL.prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,9}".prop_map(Value::String),
        array().prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        proptest::num::f64::NORMAL.prop_map(Value::F64),
    ]
}

fn gguf_tensor<'a>(
    name: &str,
    ty: GgmlType,
    shape: &[usize],
    bytes: &'a [u8],
) -> NewGgufTensor<'a> {
    NewGgufTensor {
        name: name.to_string(),
        ty,
        shape: shape.to_vec(),
        data: Box::new(|| Ok(bytes.to_vec())),
    }
}

fn open_gguf(path: &Path) -> Gguf {
    Gguf::open(Source::open(path).unwrap()).unwrap()
}

/// A type by its place in the table, a shape in blocks, a seed.
type Shaped = (usize, Vec<usize>, u64);

fn gguf_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let shape = prop::collection::vec(1..4usize, 1..5);
    let tensors = prop::collection::vec((0..GgmlType::ALL.len(), shape, any::<u64>()), 0..5);
    let strategy = (prop::collection::vec(value(), 0..6), tensors);
    let property = |(values, tensors): (Vec<Value>, Vec<Shaped>)| {
        let keyed = values.into_iter().enumerate();
        let metadata: Vec<_> = keyed.map(|(i, value)| (format!("key.{i}"), value)).collect();
        let mut made = Vec::new();
        for (index, (ty, mut shape, seed)) in tensors.into_iter().enumerate() {
            let ty = GgmlType::ALL[ty];
            *shape.last_mut().unwrap() *= ty.block_elements();
            let length = ty.bytes_of(&shape).unwrap() as usize;
            // Names in falling order: file order is not sorted order.
            made.push((format!("t{}", 9 - index), ty, shape, noise_bytes(seed, length)));
        }
        let new = made.iter().map(|(name, ty, shape, bytes)| gguf_tensor(name, *ty, shape, bytes));
        gguf::write(&path, &metadata, new.collect()).unwrap();
        let file = open_gguf(&path);
        prop_assert_eq!(file.metadata(), &metadata[..]);
        prop_assert!(file.names().eq(made.iter().map(|row| row.0.as_str())));
        for (name, ty, shape, bytes) in &made {
            let tensor = file.tensor(name).unwrap();
            prop_assert_eq!((tensor.ty, &tensor.shape), (StoredType::from(*ty), shape));
            prop_assert_eq!(
                (&tensor.bytes().unwrap()[..], file.tensor_type(name)),
                (&bytes[..], Some(*ty))
            );
            let start = tensor.range.start;
            prop_assert_eq!(start % 32, 0);
        }
        prop_assert!(file.tensor("absent").is_none() && file.get("absent").is_none());
        Ok(())
    };
    runner().run(&strategy, property).unwrap();
}

fn gguf_keeps_alignment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let alignment = |value| [("general.alignment".to_string(), value)];
    let bytes = [1u8, 2, 3, 4];
    let tensors = || {
        let tensor = |name| gguf_tensor(name, GgmlType::F32, &[1], &bytes);
        vec![tensor("a"), tensor("b")]
    };
    gguf::write(&path, &alignment(Value::U32(256)), tensors()).unwrap();
    let file = open_gguf(&path);
    assert_eq!(*file.tensor("b").unwrap().bytes().unwrap(), bytes);
    let start = |name| file.tensor(name).unwrap().range.start;
    assert_eq!(start("b") - start("a"), 256);
    for bad in [Value::U32(0), Value::U32(48), Value::U32(1 << 17), Value::Bool(true)] {
        let error = gguf::write(&path, &alignment(bad), tensors()).unwrap_err();
        assert!(matches!(error, Error::Key { .. }), "{error}");
    }
}

fn gguf_typed_lookups() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let metadata = [
        ("n".to_string(), Value::I32(-1)),
        ("x".to_string(), Value::F32(0.5)),
        ("s".to_string(), Value::String("text".to_string())),
    ];
    gguf::write(&path, &metadata, Vec::new()).unwrap();
    let file = open_gguf(&path);
    assert_eq!(file.f64("x").unwrap(), Some(0.5));
    assert_eq!(file.require_str("s").unwrap(), "text");
    assert_eq!(file.u64("absent").unwrap(), None);
    let message = |error: Error| error.to_string().replace(&path.display().to_string(), "x");
    let negative = file.u64("n").unwrap_err();
    assert_eq!(message(negative), "x: `n`: expected an unsigned integer, found I32(-1)");
    let wrong = file.strings("s").unwrap_err();
    assert_eq!(message(wrong), "x: `s`: expected an array of strings, found a string");
    let absent = file.require_bool("absent").unwrap_err();
    assert_eq!(message(absent), "x: `absent`: expected a truth value, found no such key");
}

fn gguf_refuses_what_it_cannot_hold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let long = "n".repeat(64);
    let cases: [(&str, GgmlType, &[usize]); 5] = [
        (&long, GgmlType::F32, &[1]),
        ("scalar", GgmlType::F32, &[]),
        ("five", GgmlType::F32, &[1, 1, 1, 1, 1]),
        ("empty", GgmlType::F32, &[2, 0]),
        ("rows", GgmlType::Q4K, &[256, 576]),
    ];
    for (name, ty, shape) in cases {
        let tensor = gguf_tensor(name, ty, shape, &[]);
        let error = gguf::write(&path, &[], vec![tensor]).unwrap_err();
        assert!(matches!(error, Error::Tensor { .. }), "{name}: {error}");
    }
    assert!(!path.exists());
}
