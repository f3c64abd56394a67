//! GGUF files made to harm: each shape of the published attacks, every truncation of a small valid file
//! and every byte of it changed. Each is a typed error or a valid file; none panics, none allocates beyond the file.

use libtest_mimic::Trial;
use lopper::error::Result;
use lopper::formats::Source;
use lopper::formats::gguf::Gguf;

pub fn trials() -> Vec<Trial> {
    suite!("formats":
        gguf_hostile_headers, gguf_hostile_metadata, gguf_hostile_tensors, gguf_amplification,
        gguf_valid_edges, gguf_every_truncation_and_flip)
}

/// A GGUF file in pieces, written without the library's writer, which would refuse most of these.
#[derive(Clone)]
struct Raw {
    magic: [u8; 4],
    version: u32,
    tensor_count: Option<u64>,
    pair_count: Option<u64>,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

impl Raw {
    fn new() -> Raw {
        Raw {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            pair_count: None,
            pairs: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
        }
    }

    fn pair(mut self, key: &str, ty: u32, value: &[u8]) -> Raw {
        self.pairs.push([&string(key)[..], &ty.to_le_bytes(), value].concat());
        self
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], ty: u32, offset: u64) -> Raw {
        self.tensors.push(tensor(name, dimensions.len() as u32, dimensions, ty, offset));
        self
    }

    fn raw_tensor(mut self, bytes: Vec<u8>) -> Raw {
        self.tensors.push(bytes);
        self
    }

    fn data(mut self, length: usize) -> Raw {
        self.data = (0..length).map(|i| (i * 37) as u8).collect();
        self
    }

    fn bytes(&self) -> &'static [u8] {
        let mut out = Vec::new();
        out.extend(self.magic);
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        out.extend(self.pairs.concat());
        out.extend(self.tensors.concat());
        if !self.tensors.is_empty() {
            out.resize(out.len().next_multiple_of(32), 0);
        }
        out.extend(&self.data);
        out.leak()
    }

    fn open(&self) -> Result<Gguf> {
        Gguf::open(Source::embedded("x", self.bytes()))
    }
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn tensor(name: &str, count: u32, dimensions: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let dimensions: Vec<u8> = dimensions.iter().flat_map(|d| d.to_le_bytes()).collect();
    [&string(name)[..], &count.to_le_bytes(), &dimensions, &ty.to_le_bytes(), &offset.to_le_bytes()]
        .concat()
}

/// An array value: element type, count, elements.
fn array(ty: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

fn check(cases: &[(&str, Raw)]) {
    for (part, raw) in cases {
        let message = match raw.open() {
            Ok(_) => panic!("accepted, but should say: {part}"),
            Err(error) => {
                assert_eq!(error.exit_code(), 2);
                error.to_string()
            }
        };
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

fn gguf_hostile_headers() {
    let count = |tensors: u64, pairs: u64| {
        let mut raw = Raw::new().data(100);
        (raw.tensor_count, raw.pair_count) = (Some(tensors), Some(pairs));
        raw
    };
    let with = |magic: &[u8; 4], version| {
        let mut raw = Raw::new();
        (raw.magic, raw.version) = (*magic, version);
        raw
    };
    check(&[
        ("magic at byte 0: expected GGUF", with(b"GGML", 3)),
        ("version at byte 4: expected 2 or 3, found 1", with(b"GGUF", 1)),
        ("found 4", with(b"GGUF", 4)),
        ("big-endian GGUF is not supported", with(b"GGUF", 3 << 24)),
        // CVE-2024-23605, -21836: count times size of an entry wraps.
        ("metadata count at byte 16", count(0, u64::MAX)),
        ("metadata count at byte 16", count(0, u64::MAX / 13 + 1)),
        ("metadata count at byte 16: expected at most 7", count(0, 8)),
        ("tensor count at byte 8", count(u64::MAX, 0)),
        ("tensor count at byte 8", count(1 << 58, 0)),
        ("tensor count at byte 8: expected at most 3", count(4, 0)),
    ]);
}

fn gguf_hostile_metadata() {
    let pair = |ty, value: &[u8]| Raw::new().pair("k", ty, value).data(40);
    let mut nested = array(0, 0, &[]);
    for _ in 0..4 {
        nested = array(9, 1, &nested);
    }
    // As many nestings as a file has room for: a reader that recurses without limit overflows its stack.
    let deep = array(9, 1, &[]).repeat(100_000);
    let key = |length: u64, text: &[u8]| {
        let mut raw = Raw::new().data(40);
        raw.pairs.push([&length.to_le_bytes()[..], text].concat());
        raw
    };
    let long_key = "k".repeat(65536);
    check(&[
        // CVE-2024-23496: length of a string, plus one for its closing zero, wraps.
        ("metadata key at byte 24: expected at most 65535 bytes", key(u64::MAX, b"abc")),
        ("metadata key at byte 24", Raw::new().pair(&long_key, 0, &[1])),
        ("metadata key at byte 32: expected 1000 bytes", key(1000, b"abc")),
        ("metadata key at byte 34: expected UTF-8", key(4, b"ab\xff\xfe")),
        ("expected 18446744073709551615 bytes", pair(8, &u64::MAX.to_le_bytes())),
        ("metadata value of `k` at byte 45", pair(8, &49u64.to_le_bytes())),
        ("expected UTF-8", pair(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])),
        ("expected a type from 0 to 12, found 13", pair(13, &[])),
        ("expected 0 or 1, found 2", pair(7, &[2])),
        // CVE-2024-21825: count of an array times the size of an element wraps.
        ("at most 40", pair(9, &array(0, u64::MAX, &[]))),
        ("at most 5", pair(9, &array(12, u64::MAX / 8 + 2, &[]))),
        ("at most 5", pair(9, &array(8, 6, &[]))),
        ("at most 3", pair(9, &array(9, 1 << 60, &[]))),
        ("element type from 0 to 12, found 99", pair(9, &array(99, 1, &[]))),
        ("expected 0 or 1", pair(9, &array(7, 3, &[0, 1, 255]))),
        ("at most 4 arrays in one another", pair(9, &nested)),
        ("at most 4 arrays in one another", pair(9, &deep)),
        ("`k` twice", pair(0, &[1]).pair("j", 0, &[1]).pair("k", 1, &[1])),
    ]);
    // The advisory of 2026: an alignment so large that padding wraps or claims terabytes.
    let alignment = |ty, value: &[u8]| {
        let raw = Raw::new().pair("general.alignment", ty, value);
        raw.tensor("a", &[8], 0, 0).data(64)
    };
    for value in [0u32, 3, 48, 1 << 17, 1 << 31, u32::MAX] {
        let found = format!("expected a power of two up to 65536, found U32({value})");
        check(&[(&found, alignment(4, &value.to_le_bytes()))]);
    }
    check(&[
        ("`general.alignment`", alignment(10, &(1u64 << 63).to_le_bytes())),
        ("`general.alignment`", alignment(6, &32f32.to_le_bytes())),
    ]);
}

fn gguf_hostile_tensors() {
    let one =
        |dimensions: &[u64], ty, offset| Raw::new().tensor("a", dimensions, ty, offset).data(64);
    let counted = |count| Raw::new().raw_tensor(tensor("a", count, &[8], 0, 0)).data(64);
    let two = |first: (&str, u64, u64), second: (&str, u64, u64)| {
        let raw = Raw::new().tensor(first.0, &[first.1], 0, first.2);
        raw.tensor(second.0, &[second.1], 0, second.2).data(128)
    };
    let long = "n".repeat(65);
    check(&[
        ("1 to 4 dimensions, found 4294967295", counted(u32::MAX)),
        ("1 to 4 dimensions, found 5", counted(5)),
        ("1 to 4 dimensions, found 0", counted(0)),
        ("positive dimension, found 0", one(&[8, 0], 0, 0)),
        // CVE-2024-21802, CVE-2026-33298: the product of the dimensions, or its bytes, wraps to something small.
        ("less than 2^64 bytes", one(&[1 << 32, 1 << 32], 0, 0)),
        ("less than 2^64 bytes", one(&[1 << 62, 1], 0, 0)),
        ("less than 2^64 bytes", one(&[1 << 16, 1 << 16, 1 << 16, 1 << 16], 1, 0)),
        ("less than 2^64 bytes", one(&[u64::MAX, u64::MAX, u64::MAX, u64::MAX], 24, 0)),
        // The same with a block type, where bytes are a fraction of elements.
        ("less than 2^64 bytes", one(&[1 << 63, 4], 2, 0)),
        ("less than 2^64 bytes", one(&[256, 1 << 60], 14, 0)),
        ("within the file", one(&[256, 1 << 55], 10, 0)),
        // CVE-2025-53630, CVE-2026-27940: offset, size and padding sum up to something small.
        ("within the file", one(&[8], 0, u64::MAX - 31)),
        ("within the file", one(&[8], 0, 1 << 63)),
        ("within the file", one(&[u64::MAX - 30], 24, 32)),
        // CVE-2026-7482: dimensions beyond the file.
        ("68 bytes at 64 + 0", one(&[17], 0, 0)),
        ("4 bytes at 64 + 64", one(&[1], 0, 64)),
        ("multiple of 32, found 4", one(&[1], 0, 4)),
        ("rows of whole Q4_0 blocks", one(&[33], 2, 0)),
        ("rows of whole Q6_K blocks", one(&[128, 2], 14, 0)),
        ("known tensor type, found id 4", one(&[32], 4, 0)),
        (
            "tensor `a` at byte 45: expected a known tensor type, found id 4294967295",
            one(&[32], u32::MAX, 0),
        ),
        (
            "tensor name at byte 24: expected at most 64 bytes",
            Raw::new().tensor(&long, &[8], 0, 0).data(64),
        ),
        ("tensor name: expected no duplicates, found `a` twice", two(("a", 1, 0), ("a", 1, 32))),
        ("shared with `a`", two(("a", 9, 0), ("b", 1, 32))),
        ("shared with", two(("a", 8, 32), ("b", 8, 32))),
        ("shared with `b`", two(("a", 1, 32), ("b", 32, 0))),
    ]);
}

/// Small things in the file that are larger in memory: strings without letters, arrays without elements.
fn gguf_amplification() {
    let count = 4_000_000u64;
    let strings = array(8, count, &vec![0; 8 * count as usize]);
    check(&[("more bytes in memory", Raw::new().pair("k", 9, &strings))]);
    let empty = array(0, 0, &[]).repeat(3_000_000);
    check(&[("more bytes in memory", Raw::new().pair("k", 9, &array(9, 3_000_000, &empty)))]);
}

fn gguf_valid_edges() {
    let nothing = Raw::new();
    assert!(nothing.open().unwrap().is_empty());
    let mut second = Raw::new().tensor("a", &[8], 0, 0).data(32);
    second.version = 2;
    assert_eq!(second.open().unwrap().version(), 2);
    // A name of 64 bytes, four dimensions, tensors in the file in another order than in the list, a gap between them.
    let name = "n".repeat(64);
    let raw = Raw::new().tensor(&name, &[4, 1, 2, 1], 0, 96);
    let file = raw.tensor("a", &[8], 0, 0).data(128).open().unwrap();
    assert_eq!(file.tensor(&name).unwrap().shape, [1, 2, 1, 4]);
    let deepest = array(9, 1, &array(9, 1, &array(9, 1, &array(0, 1, &[7]))));
    assert_eq!(Raw::new().pair("k", 9, &deepest).open().unwrap().metadata().len(), 1);
}

/// Opens and decodes everything: what a bad file can reach.
fn use_gguf(bytes: &'static [u8]) -> Result<()> {
    let file = Gguf::open(Source::embedded("x", bytes))?;
    for name in file.names() {
        let tensor = file.tensor(name).expect("a listed tensor");
        assert!(tensor.bytes()?.len() <= bytes.len());
        let _ = tensor.to_packed().map(|packed| packed.first_non_finite());
    }
    for (key, _) in file.metadata() {
        let _ = (file.u64(key), file.f64(key), file.str(key), file.bool(key), file.strings(key));
    }
    Ok(())
}

/// Every truncation must fail; every changed byte may do so, but with an error.
pub fn truncate_and_flip(bytes: &'static [u8], open: impl Fn(&'static [u8]) -> Result<()>) {
    open(bytes).expect("the valid file");
    for length in 0..bytes.len() {
        assert!(open(&bytes[..length]).is_err(), "accepted {length} of {} bytes", bytes.len());
    }
    for place in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = bytes.to_vec();
            changed[place] ^= flip;
            if let Err(error) = open(changed.leak()) {
                assert_eq!(error.exit_code(), 2, "{error}");
            }
        }
    }
}

fn gguf_every_truncation_and_flip() {
    let raw = Raw::new()
        .pair("general.alignment", 4, &32u32.to_le_bytes())
        .pair("tokens", 9, &array(8, 2, &[string("ab"), string("é")].concat()))
        .pair("nested", 9, &array(9, 1, &array(7, 2, &[0, 1])))
        .pair("float", 12, &1.5f64.to_le_bytes())
        .tensor("a", &[32, 2], 2, 0)
        .tensor("b", &[3, 1], 0, 64)
        .tensor("c", &[256], 12, 96)
        .data(96 + 144);
    truncate_and_flip(raw.bytes(), use_gguf);
}
