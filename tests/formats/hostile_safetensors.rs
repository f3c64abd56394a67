//! Safetensors files and indices made to harm: contradictions, every truncation of a small valid file and every byte of
//! it changed. Each is a typed error or a valid file; none panics.

use std::path::Path;

use libtest_mimic::Trial;
use lopper::error::{Error, Result};
use lopper::formats::Source;
use lopper::formats::gguf::Gguf;
use lopper::formats::safetensors::Safetensors;

use super::hostile_gguf::{string, truncate_and_flip};

pub fn trials() -> Vec<Trial> {
    suite!("formats":
        safetensors_hostile_headers, safetensors_amplification, safetensors_every_truncation_and_flip,
        index_hostile, index_every_truncation_and_flip, sources_that_are_no_files)
}

fn header(json: &str, data: usize) -> &'static [u8] {
    let mut out = string(json);
    out.resize(out.len() + data, 1);
    out.leak()
}

fn use_safetensors(bytes: &'static [u8]) -> Result<()> {
    let file = Safetensors::open(Source::embedded("x", bytes))?;
    for name in file.names() {
        let tensor = file.get(name).expect("a listed tensor");
        assert!(tensor.bytes()?.len() <= bytes.len());
        let _ = tensor.to_packed().map(|packed| packed.first_non_finite());
    }
    Ok(())
}

fn safetensors_hostile_headers() {
    let entry = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let (a, same) = (entry("[2]", 0, 8), entry("[0]", 8, 8));
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let long: &'static [u8] = u64::MAX.to_le_bytes().to_vec().leak();
    let cases: &[(&str, &'static [u8])] = &[
        ("expected at least 8 bytes, found 3 bytes", b"abc"),
        ("expected at most 100000000 bytes of header", long),
        ("expected at least 1008 bytes, found 8 bytes", 1000u64.to_le_bytes().to_vec().leak()),
        ("expected 70 bytes, found 69 bytes", header(&format!(r#"{{"a":{a}}}"#), 7)),
        ("expected 70 bytes, found 71 bytes", header(&format!(r#"{{"a":{a}}}"#), 9)),
        ("expected {", header(&format!(r#" {{"a":{a}}}"#), 8)),
        ("`a` stands twice", header(&format!(r#"{{"a":{same},"b":{a},"a":{same}}}"#), 8)),
        ("offset", header(&format!(r#"{{"a":{a},"b":{}}}"#, entry("[1]", 4, 8)), 8)),
        ("offset", header(&format!(r#"{{"a":{a},"b":{}}}"#, entry("[1]", 12, 16)), 16)),
        ("overflow", header(&format!(r#"{{"a":{}}}"#, entry("[4294967296,4294967296]", 0, 0)), 0)),
        ("invalid shape", header(&format!(r#"{{"a":{}}}"#, entry("[3]", 0, 8)), 8)),
        ("valid safetensors header", header(&deep, 8)),
        ("valid safetensors header", header("{\"a\":\u{0}}", 8)),
    ];
    for (part, bytes) in cases {
        let message = use_safetensors(bytes).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    let rows = format!(r#"{{"a":{}}}"#, entry("[1152921504606846976,0]", 0, 0));
    use_safetensors(header(&rows, 0)).unwrap(); // valid, but not to be made a matrix of 2^60 rows
}

/// A list of digits: each is 2 bytes in the file and 32 in a parser's memory.
fn safetensors_amplification() {
    let shape = "0,".repeat(5_000_000);
    let json = format!(r#"{{"a":{{"dtype":"F32","shape":[{shape}0],"data_offsets":[0,0]}}}}"#);
    let error = use_safetensors(header(&json, 0)).unwrap_err().to_string();
    assert!(error.contains("expected at most 1048576 values"), "{error}");
}

fn safetensors_every_truncation_and_flip() {
    let json = concat!(
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
        r#""b":{"dtype":"BF16","shape":[5],"data_offsets":[24,34]}}"#
    );
    truncate_and_flip(header(json, 34), use_safetensors);
}

/// A folder of two shards: `s1` with a and b, `s2` with c.
fn shards(folder: &Path, index: &str) {
    let entry = |from, to| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[{from},{to}]}}"#);
    let first = header(&format!(r#"{{"a":{},"b":{}}}"#, entry(0, 4), entry(4, 8)), 8);
    let second = header(&format!(r#"{{"c":{}}}"#, entry(0, 4)), 4);
    let index = index.as_bytes();
    let files = [("s1", first), ("s2", second), ("model.safetensors.index.json", index)];
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

const INDEX: &str = r#"{"metadata":{"total_size":12},"weight_map":{"a":"s1","b":"s1","c":"s2"}}"#;

fn index_hostile() {
    let folder = tempfile::tempdir().unwrap();
    let deep = format!("{{\"metadata\":{}", "[".repeat(100_000));
    let cases = [
        (r#""s2""#, r#""../s2""#, r#"shard file name: expected a plain file name, found "../s2""#),
        (r#""s2""#, r#""/etc/hosts""#, "plain file name"),
        (r#""s2""#, r#""a\\s2""#, "plain file name"),
        (r#""s2""#, r#""c:s2""#, "plain file name"),
        (r#""s2""#, r#""..""#, "plain file name"),
        (r#""s2""#, r#""""#, "plain file name"),
        (r#""s2""#, r#"".""#, "cannot read: a folder, not a regular file"),
        (r#""s2""#, r#""s3""#, "s3: 1 of the 2 files that the index lists are missing (s3)"),
        (
            r#""c":"s2""#,
            r#""c":"s1""#,
            "tensor `c`: expected the tensor that the index lists, found none",
        ),
        (
            r#""s2""#,
            r#""s2","d":"s2""#,
            "tensor `d`: expected the tensor that the index lists, found none",
        ),
        (r#""c":"s2""#, r#""c":"s2","a":"s1""#, "`a` stands twice"),
        (r#""s2""#, "2", "expected an object with a `weight_map`"),
        ("weight_map", "weights", "missing field `weight_map`"),
        (INDEX, &deep, "EOF while parsing"),
    ];
    for (from, to, part) in cases {
        shards(folder.path(), &INDEX.replace(from, to));
        let message = Safetensors::open_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    // A tensor stands where it stands, whatever the index says of it.
    for (from, to) in [(r#""b":"s1","#, ""), (r#""b":"s1""#, r#""b":"s2""#)] {
        shards(folder.path(), &INDEX.replace(from, to));
        let found = Safetensors::open_folder(folder.path()).unwrap();
        let tensor = found.get("b").unwrap();
        assert!(tensor.source.path().ends_with("s1") && tensor.range.len() == 4, "{tensor:?}");
        assert!(
            found.notes()[0].contains("wrong about 1 tensors (b in s1)"),
            "{:?}",
            found.notes()
        );
    }
    shards(folder.path(), INDEX);
    assert!(Safetensors::open_folder(folder.path()).unwrap().notes().is_empty());
    // The same tensor in two shards: whichever the index names, the other is not where it should be.
    shards(folder.path(), INDEX);
    std::fs::copy(folder.path().join("s1"), folder.path().join("s2")).unwrap();
    let error = Safetensors::open_folder(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Tensor { .. }), "{error}");
    let nothing = tempfile::tempdir().unwrap();
    let error = Safetensors::open_folder(nothing.path()).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

fn index_every_truncation_and_flip() {
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path(), INDEX);
    let index = folder.path().join("model.safetensors.index.json");
    truncate_and_flip(INDEX.as_bytes(), |bytes| {
        std::fs::write(&index, bytes).unwrap();
        Safetensors::open_folder(folder.path()).map(drop)
    });
}

fn sources_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_path_buf(), folder.path().join("absent")] {
        let error = Source::open(&path).unwrap_err();
        assert!(matches!(error, Error::Read { .. }), "{error}");
    }
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    assert_eq!(Source::open(&empty).unwrap().length(), 0);
    assert!(Gguf::open(Source::open(&empty).unwrap()).is_err());
    assert!(Safetensors::open(Source::open(&empty).unwrap()).is_err());
}
