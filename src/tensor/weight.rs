//! The table of weight types. A weight format is a row: bits, scale kind, how a code becomes a number.
//!
//! `packed` lays codes and scales out, the shader fragment named in the row decodes them on a GPU, and the row's
//! `decode` is what both must agree with. Codes are unsigned; their meaning is the row's.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};

use super::{SUPER_BLOCK, SUPER_WORDS, SuperBlock, minifloat};

/// Codes per storage block: a row of codes is padded to whole blocks, and a block of `b`-bit codes is exactly `b` words.
pub const BLOCK: usize = 32;

/// The group size that stands for "one group per row".
pub const WHOLE_ROW: u32 = 0;

/// What is stored for each group of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scale {
    /// Nothing: the codes are numbers already.
    None,
    /// f16 scale `s`; two groups share a word. `w = s * (code - 2^(bits-1))`.
    Symmetric,
    /// f16 scale `s` in the low half of a word, integer zero point `z` as f16 in the high half. `w = s * (code - z)`.
    ZeroPoint,
    /// f16 scale `s` in the low half of a word, f16 offset `m` in the high half. `w = s * code + m`.
    Offset,
    /// f16 scale `s`; two groups share a word. `w = s * level(code)`.
    Level,
    /// Power of two as an exponent byte (E8M0, OCP Microscaling Formats 1.0, 5.4.1); four groups share a word.
    /// `w = 2^(byte - 127) * level(code)`.
    PowerOfTwo,
    /// E4M3 scale `s` of a group, four in a word, behind one f32 scale `t` at the start of each row (NVFP4's scale of the
    /// tensor, repeated so that rows stand on their own). `w = (t * s) * level(code)`.
    TwoLevel,
    /// f16 scales `d` and `e` of a super-block, unsigned integers `s` and `m` of a group (see [`SuperBlock`]).
    /// `w = (d * s) * code - e * m`.
    SuperOffset(SuperBlock),
    /// f16 scale `d` of a super-block, signed integer `s` of a group. `w = (d * s) * (code - 2^(bits-1))`, or
    /// `(d * s) * level(code)` of levels that are no integers.
    SuperSymmetric(SuperBlock),
}

/// What the codes of a type stand for, before any scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// f32 bits.
    F32,
    /// f16 bits.
    F16,
    /// bf16 bits.
    Bf16,
    /// Unsigned integers.
    Integers,
    /// A sign, exponent and mantissa in few bits (see [`minifloat`]).
    Float {
        /// Bits of the exponent.
        exponent: u32,
        /// Bits of the mantissa.
        mantissa: u32,
    },
    /// The entries of a codebook, in rising order of code. Codes behind its end stand for 0.
    Table(&'static [f32]),
}

/// A pattern of zeros: of every `of` consecutive columns of a row at most `kept` are other than zero, and only those are
/// stored (N:M sparsity, Mishra et al. 2021, arXiv 2104.08378). The last columns of a row may be fewer than `of`.
///
/// Which columns are kept stands beside the codes, one bit a column: 4 bits for the six ways of 2:4, where log2(6) = 2.6
/// would do. Any N:M costs as much, and a bit is read with no more than a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sparsity {
    /// Columns that may be other than zero.
    pub kept: u32,
    /// Columns among which they are: a power of two up to [`BLOCK`].
    pub of: u32,
}

impl Sparsity {
    /// Two of every four.
    pub const TWO_OF_FOUR: Sparsity = Sparsity { kept: 2, of: 4 };

    /// The pattern as it is written: `2:4`.
    pub fn label(self) -> String {
        format!("{}:{}", self.kept, self.of)
    }

    /// The pattern of a row of the table that a text names; `None` for any other text.
    pub fn from_label(text: &str) -> Option<Self> {
        let mut patterns = WEIGHT_TYPES.iter().filter_map(|row| row.sparsity);
        patterns.find(|pattern| pattern.label() == text)
    }
}

/// One row of the table: everything that is true of a weight type at any group size.
#[derive(Debug)]
pub struct WeightType {
    /// The name in recipes, labels, files and `--type`.
    pub name: &'static str,
    /// Bits of one code.
    pub bits: u32,
    /// What belongs to a group.
    pub scale: Scale,
    /// The WGSL fragment that decodes it: `shaders/shared/NAME.wgsl`.
    pub fragment: &'static str,
    /// What a code stands for.
    pub levels: Levels,
    /// The columns whose codes are stored; `None`: all of them.
    pub sparsity: Option<Sparsity>,
}

impl PartialEq for WeightType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for WeightType {}
impl std::hash::Hash for WeightType {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl WeightType {
    /// Whether the codes need scales.
    pub fn has_scales(&self) -> bool {
        self.scale != Scale::None
    }

    /// How super-blocks are divided, of a type whose scales have them.
    pub fn super_block(&self) -> Option<SuperBlock> {
        match self.scale {
            Scale::SuperOffset(of) | Scale::SuperSymmetric(of) => Some(of),
            _ => None,
        }
    }

    /// Whether matrices of the type may have groups of that size: a power of two from 16, or a row; of super-blocks, that
    /// which they are divided in.
    pub fn allows_group_size(&self, size: u32) -> bool {
        match self.super_block() {
            Some(of) => size == of.group,
            None => size == WHOLE_ROW || size >= 16 && size.is_power_of_two(),
        }
    }

    /// Whether zeros are left out.
    pub fn is_sparse(&self) -> bool {
        self.sparsity.is_some()
    }

    /// The type whose matrices are codes alone, without scales or patterns: plain numbers, as other programs' files hold
    /// them.
    pub fn is_plain(&self) -> bool {
        !self.has_scales() && !self.is_sparse()
    }

    /// The row that stores the same codes in that pattern, `None` for all of them; `None` if the table has none.
    pub fn with_sparsity(&self, sparsity: Option<Sparsity>) -> Option<&'static WeightType> {
        let same = |row: &&WeightType| {
            row.bits == self.bits
                && row.scale == self.scale
                && row.levels == self.levels
                && row.sparsity == sparsity
        };
        WEIGHT_TYPES.iter().copied().find(same)
    }

    /// The code that stands for 0 whatever the scale, and for columns that are not kept. Types with a second number have
    /// none, and no pattern.
    pub fn zero_code(&self) -> u32 {
        if self.scale == Scale::Symmetric { 1 << (self.bits - 1) } else { 0 }
    }

    /// The level in the middle of a symmetric type's, which counts as 0: half of what integers have, 0 among other levels.
    fn middle(&self) -> f32 {
        if self.is_affine() { (1u32 << (self.bits - 1)) as f32 } else { 0.0 }
    }

    /// Whether a code stands for 0 in a type that has a pattern. f16's -0.0 does.
    pub fn is_zero(&self, code: u32) -> bool {
        let magnitude = if self.levels == Levels::F16 { code & 0x7fff } else { code };
        magnitude == self.zero_code()
    }

    /// Whether codes are integers on an evenly spaced grid.
    pub fn is_affine(&self) -> bool {
        self.levels == Levels::Integers
    }

    /// Codes that stand for something: 2^bits, or the entries of a codebook.
    pub fn codes(&self) -> u32 {
        match self.levels {
            Levels::Table(table) => table.len() as u32,
            _ => 1 << self.bits.min(31),
        }
    }

    /// What a code of up to 16 bits stands for before any scale.
    pub fn level(&self, code: u32) -> f32 {
        match self.levels {
            Levels::F32 => f32::from_bits(code),
            Levels::F16 => f16::from_bits(code as u16).to_f32(),
            Levels::Bf16 => bf16::from_bits(code as u16).to_f32(),
            Levels::Integers => code as f32,
            Levels::Float { exponent, mantissa } => minifloat::decode(code, exponent, mantissa),
            Levels::Table(table) => table.get(code as usize).copied().unwrap_or(0.0),
        }
    }

    /// The f32 that a code stands for, given its group's scale and second number (see [`Scale`]).
    ///
    /// One rounding at most: a product of a scale and an integer is exact in f32, so every device agrees bit for bit.
    pub fn decode(&self, code: u32, scale: f32, second: f32) -> f32 {
        let level = self.level(code);
        match self.scale {
            Scale::None => level,
            Scale::Symmetric | Scale::SuperSymmetric(_) => scale * (level - self.middle()),
            Scale::ZeroPoint => scale * (level - second),
            Scale::Offset | Scale::SuperOffset(_) => scale * level + second,
            Scale::Level | Scale::PowerOfTwo | Scale::TwoLevel => scale * level,
        }
    }
}

macro_rules! affine {
    ($bits:literal, $symmetric:literal, $zero_point:literal, $offset:literal) => {
        [
            WeightType {
                name: $symmetric,
                bits: $bits,
                scale: Scale::Symmetric,
                fragment: "weight_affine",
                levels: Levels::Integers,
                sparsity: None,
            },
            WeightType {
                name: $zero_point,
                bits: $bits,
                scale: Scale::ZeroPoint,
                fragment: "weight_affine",
                levels: Levels::Integers,
                sparsity: None,
            },
            WeightType {
                name: $offset,
                bits: $bits,
                scale: Scale::Offset,
                fragment: "weight_affine",
                levels: Levels::Integers,
                sparsity: None,
            },
        ]
    };
}

const FLOATS: [WeightType; 3] = [
    WeightType {
        name: "f32",
        bits: 32,
        scale: Scale::None,
        fragment: "weight_f32",
        levels: Levels::F32,
        sparsity: None,
    },
    WeightType {
        name: "f16",
        bits: 16,
        scale: Scale::None,
        fragment: "weight_f16",
        levels: Levels::F16,
        sparsity: None,
    },
    WeightType {
        name: "bf16",
        bits: 16,
        scale: Scale::None,
        fragment: "weight_bf16",
        levels: Levels::Bf16,
        sparsity: None,
    },
];
const AFFINE: [[WeightType; 3]; 8] = [
    affine!(1, "int1", "uint1z", "uint1m"),
    affine!(2, "int2", "uint2z", "uint2m"),
    affine!(3, "int3", "uint3z", "uint3m"),
    affine!(4, "int4", "uint4z", "uint4m"),
    affine!(5, "int5", "uint5z", "uint5m"),
    affine!(6, "int6", "uint6z", "uint6m"),
    affine!(7, "int7", "uint7z", "uint7m"),
    affine!(8, "int8", "uint8z", "uint8m"),
];

/// A type whose codes are levels, not integers.
const fn leveled(name: &'static str, bits: u32, scale: Scale, levels: Levels) -> WeightType {
    WeightType { name, bits, scale, fragment: "weight_levels", levels, sparsity: None }
}

const fn float(exponent: u32, mantissa: u32) -> Levels {
    Levels::Float { exponent, mantissa }
}

/// The sixteen values of NF4: quantiles of a normal distribution (QLoRA, arXiv 2305.14314, appendix E).
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const LEVELED: [WeightType; 7] = [
    // BitNet b1.58's values, two bits each.
    leveled("ternary", 2, Scale::Level, Levels::Table(&[-1.0, 0.0, 1.0])),
    leveled("nf4", 4, Scale::Level, Levels::Table(&NF4)),
    leveled("fp4", 4, Scale::Level, float(2, 1)),
    leveled("fp8_e4m3", 8, Scale::Level, float(4, 3)),
    leveled("fp8_e5m2", 8, Scale::Level, float(5, 2)),
    leveled("mxfp4", 4, Scale::PowerOfTwo, float(2, 1)),
    leveled("nvfp4", 4, Scale::TwoLevel, float(2, 1)),
];

/// The sixteen values of GGUF's IQ4_NL and IQ4_XS (llama.cpp's `kvalues_iq4nl`).
const IQ4: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// A type of integers whose scales have super-blocks.
const fn super_affine(name: &'static str, bits: u32, scale: Scale) -> WeightType {
    let (fragment, levels) = ("weight_affine", Levels::Integers);
    WeightType { name, bits, scale, fragment, levels, sparsity: None }
}

/// Groups of that many columns, whose integers have so many bits.
const fn super_block(group: u32, bits: u32) -> SuperBlock {
    SuperBlock { group, bits }
}

/// GGUF's K types, and those with the table above.
const SUPER: [WeightType; 7] = [
    super_affine("q2_k", 2, Scale::SuperOffset(super_block(16, 4))),
    super_affine("q3_k", 3, Scale::SuperSymmetric(super_block(16, 6))),
    super_affine("q4_k", 4, Scale::SuperOffset(super_block(32, 6))),
    super_affine("q5_k", 5, Scale::SuperOffset(super_block(32, 6))),
    super_affine("q6_k", 6, Scale::SuperSymmetric(super_block(16, 8))),
    leveled("iq4_nl", 4, Scale::Level, Levels::Table(&IQ4)),
    leveled("iq4_xs", 4, Scale::SuperSymmetric(super_block(32, 6)), Levels::Table(&IQ4)),
];

/// Types that store two of every four columns. Symmetric integers, for which one code stands for 0: with a zero point or
/// an offset none need.
const TWO_OF_FOUR: [WeightType; 3] = [
    WeightType {
        name: "f16_2of4",
        bits: 16,
        scale: Scale::None,
        fragment: "weight_kept_f16",
        levels: Levels::F16,
        sparsity: Some(Sparsity::TWO_OF_FOUR),
    },
    WeightType {
        name: "int8_2of4",
        bits: 8,
        scale: Scale::Symmetric,
        fragment: "weight_affine",
        levels: Levels::Integers,
        sparsity: Some(Sparsity::TWO_OF_FOUR),
    },
    WeightType {
        name: "int4_2of4",
        bits: 4,
        scale: Scale::Symmetric,
        fragment: "weight_affine",
        levels: Levels::Integers,
        sparsity: Some(Sparsity::TWO_OF_FOUR),
    },
];

/// Every weight type. Suffix `z`: integer zero point; `m`: float minimum (offset); neither: symmetric. `_2of4`: zeros left
/// out, two of four columns kept. `q`, `iq`: named as in GGUF.
pub static WEIGHT_TYPES: [&WeightType; 44] = {
    static F: [WeightType; 3] = FLOATS;
    static A: [[WeightType; 3]; 8] = AFFINE;
    static L: [WeightType; 7] = LEVELED;
    static K: [WeightType; 7] = SUPER;
    static S: [WeightType; 3] = TWO_OF_FOUR;
    [
        &F[0], &F[1], &F[2], &A[0][0], &A[0][1], &A[0][2], &A[1][0], &A[1][1], &A[1][2], &A[2][0],
        &A[2][1], &A[2][2], &A[3][0], &A[3][1], &A[3][2], &A[4][0], &A[4][1], &A[4][2], &A[5][0],
        &A[5][1], &A[5][2], &A[6][0], &A[6][1], &A[6][2], &A[7][0], &A[7][1], &A[7][2], &L[0],
        &L[1], &L[2], &L[3], &L[4], &L[5], &L[6], &K[0], &K[1], &K[2], &K[3], &K[4], &K[5], &K[6],
        &S[0], &S[1], &S[2],
    ]
};

/// The row of that name.
pub fn weight_type(name: &str) -> Option<&'static WeightType> {
    WEIGHT_TYPES.iter().copied().find(|row| row.name == name)
}

/// Entries that a codebook may have: a code has at most 8 bits.
const MAX_CODEBOOK: usize = 256;

/// The type of a user's codebook, with f16 scales: as many bits as its entries need. The same entries give the same type.
/// A row lives as long as the program; there is one for each distinct codebook.
///
/// Errors: what is wrong with the entries, in words.
pub fn codebook(entries: &[f32]) -> Result<&'static WeightType, String> {
    static KNOWN: Mutex<BTreeMap<Vec<u32>, &'static WeightType>> = Mutex::new(BTreeMap::new());
    if !(2..=MAX_CODEBOOK).contains(&entries.len()) {
        return Err(format!("{} entries", entries.len()));
    }
    if let Some(place) = entries.iter().position(|entry| !entry.is_finite()) {
        return Err(format!("{} as entry {place}", entries[place]));
    }
    if entries.iter().all(|entry| *entry == 0.0) {
        return Err("no entry but 0".into());
    }
    let wanted: Vec<u32> = entries.iter().map(|entry| entry.to_bits()).collect();
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ty) = known.get(&wanted) {
        return Ok(ty);
    }
    let width = usize::BITS - (entries.len() - 1).leading_zeros();
    // FNV-1a: the name is the same in every run, and types are equal when their names are.
    let hash = wanted.iter().flat_map(|bits| bits.to_le_bytes());
    let hash = hash.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let name = format!("codebook{}-{hash:016x}", entries.len());
    let table: &'static [f32] = Vec::leak(entries.to_vec());
    let ty: &'static WeightType =
        Box::leak(Box::new(leveled(String::leak(name), width, Scale::Level, Levels::Table(table))));
    known.insert(wanted, ty);
    Ok(ty)
}

/// A weight type at a group size: what a packed tensor is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightFormat {
    /// The row of the table.
    pub ty: &'static WeightType,
    /// Columns that share a scale; [`WHOLE_ROW`] for one group per row, and for types without scales.
    pub group_size: u32,
}

impl WeightFormat {
    /// f32, one word per code.
    pub fn f32() -> Self {
        Self { ty: WEIGHT_TYPES[0], group_size: WHOLE_ROW }
    }

    /// f16.
    pub fn f16() -> Self {
        Self { ty: WEIGHT_TYPES[1], group_size: WHOLE_ROW }
    }

    /// bf16.
    pub fn bf16() -> Self {
        Self { ty: WEIGHT_TYPES[2], group_size: WHOLE_ROW }
    }

    /// A type with groups of that size, or those that its super-blocks have.
    pub fn grouped(ty: &'static WeightType, group_size: u32) -> Self {
        let group_size = ty.super_block().map_or(group_size, |of| of.group);
        Self { ty, group_size }
    }

    /// Affine codes of `bits` bits (1 to 8), `None` for other widths or a scale kind that affine codes do not have.
    pub fn affine(bits: u32, scale: Scale, group_size: u32) -> Option<Self> {
        let ty = WEIGHT_TYPES.iter().copied().find(|row| {
            row.is_affine() && row.bits == bits && row.scale == scale && !row.is_sparse()
        })?;
        Some(Self { ty, group_size })
    }

    /// Columns per group in a row of `columns`.
    pub fn group_columns(self, columns: usize) -> usize {
        if self.group_size == WHOLE_ROW { columns.max(1) } else { self.group_size as usize }
    }

    /// Groups in a row; the last one may be shorter. 0 for types without scales.
    pub fn groups_per_row(self, columns: usize) -> usize {
        if self.ty.has_scales() { columns.div_ceil(self.group_columns(columns)) } else { 0 }
    }

    /// Super-blocks of a row; 0 for types whose scales have none.
    pub fn super_blocks_per_row(self, columns: usize) -> usize {
        self.ty.super_block().map_or(0, |_| columns.div_ceil(SUPER_BLOCK))
    }

    /// Columns that go or stay together where columns are picked, so that what is left keeps its scales: a super-block, or a
    /// group. 1 where there are no scales.
    pub fn columns_together(self, columns: usize) -> usize {
        match self.ty.super_block() {
            Some(_) => SUPER_BLOCK,
            None if self.ty.has_scales() => self.group_columns(columns),
            None => 1,
        }
    }

    /// The format without its pattern: every code stored.
    pub fn dense(self) -> Self {
        let ty = if self.ty.is_sparse() { self.ty.with_sparsity(None) } else { Some(self.ty) };
        Self { ty: ty.expect("each row with a pattern has one without"), ..self }
    }

    /// The format with a pattern, `None` if the table has no such row.
    pub fn with_sparsity(self, sparsity: Option<Sparsity>) -> Option<Self> {
        Some(Self { ty: self.ty.with_sparsity(sparsity)?, ..self })
    }

    /// Words that a block of 32 columns has of codes.
    pub fn code_words_per_block(self) -> usize {
        let bits = self.ty.bits as usize;
        self.ty.sparsity.map_or(bits, |pattern| bits * pattern.kept as usize / pattern.of as usize)
    }

    /// Words at the start of a row that say which columns are kept, one for each block of 32, padded to vectors of four
    /// words. None for types without a pattern.
    pub fn kept_words_per_row(self, columns: usize) -> usize {
        if self.ty.is_sparse() { columns.div_ceil(BLOCK).next_multiple_of(4) } else { 0 }
    }

    /// Words of codes in a row, padded to whole blocks; with a pattern to vectors of four words, which columns are kept in
    /// front.
    pub fn code_words_per_row(self, columns: usize) -> usize {
        let codes = columns.div_ceil(BLOCK) * self.code_words_per_block();
        match self.ty.is_sparse() {
            true => self.kept_words_per_row(columns) + codes.next_multiple_of(4),
            false => codes,
        }
    }

    /// Words of scales in a row.
    pub fn scale_words_per_row(self, columns: usize) -> usize {
        let groups = self.groups_per_row(columns);
        match self.ty.scale {
            Scale::None => 0,
            Scale::Symmetric | Scale::Level => groups.div_ceil(2),
            Scale::ZeroPoint | Scale::Offset => groups,
            Scale::PowerOfTwo => groups.div_ceil(4),
            Scale::TwoLevel => 1 + groups.div_ceil(4),
            Scale::SuperOffset(_) | Scale::SuperSymmetric(_) => {
                SUPER_WORDS * self.super_blocks_per_row(columns)
            }
        }
    }

    /// Bytes of a packed matrix.
    pub fn bytes(self, rows: usize, columns: usize) -> u64 {
        4 * rows as u64
            * (self.code_words_per_row(columns) + self.scale_words_per_row(columns)) as u64
    }

    /// Bytes of a matrix without the padding of its rows: what its codes and scales come to, as reports count them.
    pub fn unpadded_bytes(self, rows: usize, columns: usize) -> u64 {
        let groups = self.groups_per_row(columns) as u64;
        let scales = match self.ty.scale {
            Scale::None => 0,
            Scale::Symmetric | Scale::Level => 2 * groups,
            Scale::ZeroPoint | Scale::Offset => 4 * groups,
            Scale::PowerOfTwo => groups,
            Scale::TwoLevel => 4 + groups,
            Scale::SuperOffset(of) | Scale::SuperSymmetric(of) => {
                let numbers = if matches!(self.ty.scale, Scale::SuperOffset(_)) { 2 } else { 1 };
                let halves = 2 * self.super_blocks_per_row(columns) as u64;
                numbers * halves + (numbers * groups * u64::from(of.bits)).div_ceil(8)
            }
        };
        let codes = match self.ty.sparsity {
            None => columns,
            Some(pattern) => {
                let (kept, of) = (pattern.kept as usize, pattern.of as usize);
                columns / of * kept + kept.min(columns % of)
            }
        };
        let patterns = if self.ty.is_sparse() { columns.div_ceil(8) as u64 } else { 0 };
        rows as u64 * ((codes as u64 * u64::from(self.ty.bits)).div_ceil(8) + patterns + scales)
    }

    /// The format that a label names: what [`WeightFormat::label`] writes. `None` for any other text.
    pub fn from_label(text: &str) -> Option<Self> {
        let (name, group) = match text.rsplit_once('-') {
            Some((name, group)) => (name, Some(group)),
            None => (text, None),
        };
        let ty = weight_type(name)?;
        let group_size = match group {
            None | Some("row") => WHOLE_ROW,
            Some(group) => group.strip_prefix('g')?.parse().ok()?,
        };
        let format = Self::grouped(ty, group_size);
        // `g0` and `g032` are no labels, nor is a type that needs a group without one.
        (ty.allows_group_size(format.group_size) && format.label() == text).then_some(format)
    }

    /// The name with its group size: `uint4m-g32`, `f16`, `int8-row`. Super-blocks are always divided alike: `q4_k`.
    pub fn label(self) -> String {
        let names_group = self.ty.has_scales() && self.ty.super_block().is_none();
        match (names_group, self.group_size) {
            (false, _) => self.ty.name.to_string(),
            (true, WHOLE_ROW) => format!("{}-row", self.ty.name),
            (true, group) => format!("{}-g{group}", self.ty.name),
        }
    }
}
