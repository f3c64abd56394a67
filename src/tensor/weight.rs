//! The table of weight types. A weight format is a row: bits, scale kind, how a code becomes a number.
//!
//! `packed` lays codes and scales out, the shader fragment named in the row decodes them on a GPU, and the row's
//! `decode` is what both must agree with. Codes are unsigned; their meaning is the row's.

use half::{bf16, f16};

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
    /// The f32 that a code stands for, given its group's scale and second number (see [`Scale`]) as f32.
    ///
    /// Each product `s * integer` is exact in f32, so there is one rounding at most, and every device agrees bit for bit.
    pub decode: fn(bits: u32, code: u32, scale: f32, second: f32) -> f32,
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
    pub fn is_affine(&self) -> bool {
        self.scale != Scale::None
    }
}

fn decode_f32(_: u32, code: u32, _: f32, _: f32) -> f32 {
    f32::from_bits(code)
}
fn decode_f16(_: u32, code: u32, _: f32, _: f32) -> f32 {
    f16::from_bits(code as u16).to_f32()
}
fn decode_bf16(_: u32, code: u32, _: f32, _: f32) -> f32 {
    bf16::from_bits(code as u16).to_f32()
}
fn decode_symmetric(bits: u32, code: u32, scale: f32, _: f32) -> f32 {
    scale * (code as f32 - (1u32 << (bits - 1)) as f32)
}
fn decode_zero_point(_: u32, code: u32, scale: f32, zero_point: f32) -> f32 {
    scale * (code as f32 - zero_point)
}
fn decode_offset(_: u32, code: u32, scale: f32, offset: f32) -> f32 {
    scale * code as f32 + offset
}

macro_rules! affine {
    ($bits:literal, $symmetric:literal, $zero_point:literal, $offset:literal) => {
        [
            WeightType {
                name: $symmetric,
                bits: $bits,
                scale: Scale::Symmetric,
                fragment: "weight_affine",
                decode: decode_symmetric,
            },
            WeightType {
                name: $zero_point,
                bits: $bits,
                scale: Scale::ZeroPoint,
                fragment: "weight_affine",
                decode: decode_zero_point,
            },
            WeightType {
                name: $offset,
                bits: $bits,
                scale: Scale::Offset,
                fragment: "weight_affine",
                decode: decode_offset,
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
        decode: decode_f32,
    },
    WeightType {
        name: "f16",
        bits: 16,
        scale: Scale::None,
        fragment: "weight_f16",
        decode: decode_f16,
    },
    WeightType {
        name: "bf16",
        bits: 16,
        scale: Scale::None,
        fragment: "weight_bf16",
        decode: decode_bf16,
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

/// Every weight type. Suffix `z`: integer zero point; `m`: float minimum (offset); neither: symmetric.
pub static WEIGHT_TYPES: [&WeightType; 27] = {
    static F: [WeightType; 3] = FLOATS;
    static A: [[WeightType; 3]; 8] = AFFINE;
    [
        &F[0], &F[1], &F[2], &A[0][0], &A[0][1], &A[0][2], &A[1][0], &A[1][1], &A[1][2], &A[2][0],
        &A[2][1], &A[2][2], &A[3][0], &A[3][1], &A[3][2], &A[4][0], &A[4][1], &A[4][2], &A[5][0],
        &A[5][1], &A[5][2], &A[6][0], &A[6][1], &A[6][2], &A[7][0], &A[7][1], &A[7][2],
    ]
};

/// The row of that name.
pub fn weight_type(name: &str) -> Option<&'static WeightType> {
    WEIGHT_TYPES.iter().copied().find(|row| row.name == name)
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
        Self {
            ty: WEIGHT_TYPES[0],
            group_size: WHOLE_ROW,
        }
    }

    /// f16.
    pub fn f16() -> Self {
        Self {
            ty: WEIGHT_TYPES[1],
            group_size: WHOLE_ROW,
        }
    }

    /// bf16.
    pub fn bf16() -> Self {
        Self {
            ty: WEIGHT_TYPES[2],
            group_size: WHOLE_ROW,
        }
    }

    /// Affine codes of `bits` bits (1 to 8), `None` for other widths or a scale kind that affine codes do not have.
    pub fn affine(bits: u32, scale: Scale, group_size: u32) -> Option<Self> {
        let ty = WEIGHT_TYPES
            .iter()
            .copied()
            .find(|row| row.is_affine() && row.bits == bits && row.scale == scale)?;
        Some(Self { ty, group_size })
    }

    /// Columns per group in a row of `columns`.
    pub fn group_columns(self, columns: usize) -> usize {
        if self.group_size == WHOLE_ROW {
            columns.max(1)
        } else {
            self.group_size as usize
        }
    }

    /// Groups in a row; the last one may be shorter. 0 for types without scales.
    pub fn groups_per_row(self, columns: usize) -> usize {
        if self.ty.is_affine() {
            columns.div_ceil(self.group_columns(columns))
        } else {
            0
        }
    }

    /// Words of codes in a row, padded to whole blocks.
    pub fn code_words_per_row(self, columns: usize) -> usize {
        columns.div_ceil(BLOCK) * self.ty.bits as usize
    }

    /// Words of scales in a row.
    pub fn scale_words_per_row(self, columns: usize) -> usize {
        let groups = self.groups_per_row(columns);
        match self.ty.scale {
            Scale::None => 0,
            Scale::Symmetric => groups.div_ceil(2),
            Scale::ZeroPoint | Scale::Offset => groups,
        }
    }

    /// Bytes of a packed matrix.
    pub fn bytes(self, rows: usize, columns: usize) -> u64 {
        4 * rows as u64
            * (self.code_words_per_row(columns) + self.scale_words_per_row(columns)) as u64
    }

    /// The name with its group size: `uint4m-g32`, `f16`, `int8-row`.
    pub fn label(self) -> String {
        match (self.ty.is_affine(), self.group_size) {
            (false, _) => self.ty.name.to_string(),
            (true, WHOLE_ROW) => format!("{}-row", self.ty.name),
            (true, group) => format!("{}-g{group}", self.ty.name),
        }
    }
}
