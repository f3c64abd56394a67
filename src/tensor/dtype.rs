//! Element types of activations and of the tensors in checkpoints.

use half::{bf16, f16};

use super::minifloat;

/// The type of one element of a dense tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Unsigned 32-bit integer: token ids, positions, packed codes.
    U32,
    /// Signed 64-bit integer: token ids and counts in files. No kernel takes it.
    I64,
    /// IEEE binary64: exact sums in files. No kernel takes it.
    F64,
    /// Signed 32-bit integer: packed codes in other tools' files. No kernel takes it.
    I32,
    /// Unsigned 8-bit integer: bytes of packed codes in other tools' files. No kernel takes it.
    U8,
    /// Signed 8-bit integer: codes in other tools' files. No kernel takes it.
    I8,
    /// A float of 4 exponent bits and 3 of mantissa (see [`minifloat`]): codes and scales in files. No kernel takes it.
    F8E4m3,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::U8 | DType::I8 | DType::F8E4m3 => 1,
            DType::F32 | DType::U32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::I64 | DType::F64 => 8,
        }
    }

    /// The name used in messages, JSON and kernel labels.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::U32 => "u32",
            DType::I64 => "i64",
            DType::F64 => "f64",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::I8 => "i8",
            DType::F8E4m3 => "f8_e4m3",
        }
    }

    /// Half the distance between 1 and the next larger value: the relative error of one rounding. 0 for integers.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            DType::F32 => f64::powi(2.0, -24),
            DType::F16 => f64::powi(2.0, -11),
            DType::Bf16 => f64::powi(2.0, -8),
            DType::F64 => f64::powi(2.0, -53),
            DType::F8E4m3 => f64::powi(2.0, -4),
            DType::U32 | DType::I64 | DType::I32 | DType::U8 | DType::I8 => 0.0,
        }
    }

    /// Half the smallest positive value: the absolute error of one rounding near zero.
    ///
    /// f32 and bf16 results below the normal range may be flushed to zero by a GPU, so there it is the smallest
    /// normal value.
    pub fn underflow(self) -> f64 {
        match self {
            DType::F32 | DType::Bf16 => f64::from(f32::MIN_POSITIVE),
            DType::F16 => f64::powi(2.0, -14),
            DType::F64 => f64::MIN_POSITIVE,
            DType::F8E4m3 => f64::powi(2.0, -10),
            DType::U32 | DType::I64 | DType::I32 | DType::U8 | DType::I8 => 0.0,
        }
    }

    /// Reads element `index` of a little-endian buffer as f64. Exact, but for 64-bit integers beyond 2^53.
    pub fn get(self, bytes: &[u8], index: usize) -> f64 {
        let at = index * self.size();
        match self {
            DType::I64 => i64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")) as f64,
            DType::F64 => f64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")),
            DType::F32 => {
                f64::from(f32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")))
            }
            DType::U32 => {
                f64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")))
            }
            DType::F16 => {
                f64::from(f16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes")))
            }
            DType::Bf16 => {
                f64::from(bf16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes")))
            }
            DType::I32 => {
                f64::from(i32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")))
            }
            DType::U8 => f64::from(bytes[at]),
            DType::I8 => f64::from(bytes[at] as i8),
            DType::F8E4m3 => f64::from(minifloat::decode(bytes[at].into(), 4, 3)),
        }
    }

    /// Rounds `value` to this type (to nearest, ties to even) and stores it as element `index`.
    pub fn set(self, bytes: &mut [u8], index: usize, value: f64) {
        let at = index * self.size();
        match self {
            DType::I64 => bytes[at..at + 8].copy_from_slice(&(value as i64).to_le_bytes()),
            DType::F64 => bytes[at..at + 8].copy_from_slice(&value.to_le_bytes()),
            DType::F32 => bytes[at..at + 4].copy_from_slice(&(value as f32).to_le_bytes()),
            DType::U32 => bytes[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes()),
            DType::F16 => bytes[at..at + 2].copy_from_slice(&f16::from_f64(value).to_le_bytes()),
            DType::Bf16 => bytes[at..at + 2].copy_from_slice(&bf16::from_f64(value).to_le_bytes()),
            DType::I32 => bytes[at..at + 4].copy_from_slice(&(value as i32).to_le_bytes()),
            DType::U8 => bytes[at] = value as u8,
            DType::I8 => bytes[at] = (value as i8).cast_unsigned(),
            DType::F8E4m3 => {
                let sign = if value.is_sign_negative() { 0x80 } else { 0 };
                bytes[at] = match value.is_nan() {
                    true => 0x7f,
                    false => sign | minifloat::encode_magnitude(value.abs() as f32, 4, 3) as u8,
                };
            }
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
