//! The key-value cache: the types it may have, and what writes and reads it.
//!
//! A row of a cache is a token's keys (or values) of all heads, stored as a row of a weight is: codes, and beside them the
//! scales of groups of neighbouring columns that never straddle two heads. A cache type is a row of [`CACHE_TYPES`].

pub mod advance;
pub mod append;
pub mod append_rounded;
pub mod decode;

use half::f16;

use crate::device::{Args, Device, Tensor, Variant};
use crate::error::{Error, Result};
use crate::kernels::matrix::Layout;
use crate::kernels::weights;
use crate::tensor::{DType, Scale, WHOLE_ROW, WeightFormat, WeightType, weight_type};

/// A type of a cache's keys and values.
#[derive(Debug, PartialEq, Eq)]
pub struct CacheType {
    /// Its name in flags and reports: llama.cpp's.
    pub name: &'static str,
    /// The weight type whose rows it has.
    weight: &'static str,
    /// Whether a symmetric group's value of largest magnitude falls on the lowest code, whatever its sign.
    signed_max: bool,
}

/// Every type of cache, from what loses least to what is smallest.
pub static CACHE_TYPES: [CacheType; 5] = [
    CacheType { name: "f32", weight: "f32", signed_max: false },
    CacheType { name: "f16", weight: "f16", signed_max: false },
    CacheType { name: "q8_0", weight: "int8", signed_max: false },
    CacheType { name: "q4_1", weight: "uint4m", signed_max: false },
    CacheType { name: "q4_0", weight: "int4", signed_max: true },
];

impl CacheType {
    /// The type of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CACHE_TYPES.iter().find(|ty| ty.name == name)
    }

    /// The type of plain numbers: f16, or f32.
    pub fn plain(dtype: DType) -> &'static Self {
        &CACHE_TYPES[usize::from(dtype == DType::F16)]
    }

    /// The type of its numbers, where it has no scales.
    fn dtype(&self) -> Option<DType> {
        match self.name {
            "f32" => Some(DType::F32),
            "f16" => Some(DType::F16),
            _ => None,
        }
    }

    fn weight(&self) -> &'static WeightType {
        weight_type(self.weight).expect("a cache type names a row of the weight types")
    }

    /// How rows of heads of so many columns are stored. Groups are of 32 columns, or of 16 where a head is no multiple of 32.
    ///
    /// Errors: a head of which neither is a part.
    pub fn format(&self, head_dim: usize) -> Result<WeightFormat> {
        let ty = self.weight();
        if !ty.has_scales() {
            return Ok(WeightFormat { ty, group_size: WHOLE_ROW });
        }
        match [32, 16].into_iter().find(|group| head_dim.is_multiple_of(*group as usize)) {
            Some(group_size) => Ok(WeightFormat { ty, group_size }),
            None => Err(Error::Argument {
                argument: format!("--cache-type {}", self.name),
                expected: "heads of a multiple of 16 columns; f32 or f16 for others".into(),
                found: format!("head_dim {head_dim}"),
            }),
        }
    }

    /// Bytes of a token's keys and values in a layer of so many columns each.
    pub fn bytes_per_token(&self, width: usize, head_dim: usize) -> Result<u64> {
        let layout = layout(self, self.format(head_dim)?, width);
        Ok(8 * u64::from(layout.code_words + layout.scale_words))
    }

    /// What a symmetric group's largest magnitude, or an asymmetric one's range, is multiplied by for its scale.
    fn factor(&self) -> f32 {
        let codes = f32::powi(2.0, self.weight().bits.min(16) as i32);
        match (self.weight().scale, self.signed_max) {
            (Scale::Symmetric, true) => -2.0 / codes,
            (Scale::Symmetric, false) => 1.0 / (codes / 2.0 - 1.0),
            _ => 1.0 / (codes - 1.0),
        }
    }
}

/// Rows of plain numbers are not padded to whole blocks.
fn layout(ty: &CacheType, format: WeightFormat, width: usize) -> Layout {
    let layout = Layout::new(format, width);
    match ty.dtype() {
        Some(dtype) => Layout { code_words: (width * dtype.size() / 4) as u32, ..layout },
        None => layout,
    }
}

/// A layer's keys, or its values.
#[derive(Clone, Debug)]
pub struct Cached {
    ty: &'static CacheType,
    format: WeightFormat,
    /// Columns of a row.
    width: usize,
    /// (sequences, capacity, width) plain numbers, or (sequences, capacity, code_words) u32.
    codes: Tensor,
    /// (sequences, capacity, scale_words) u32; one unused word where there are none.
    scales: Tensor,
}

impl Cached {
    /// Room for rows of heads of `head_dim` columns, `width` in all, of `sequences` sequences of `capacity` tokens each. `what`
    /// names it in errors.
    pub fn new(
        device: &Device,
        ty: &'static CacheType,
        (sequences, capacity): (usize, usize),
        (width, head_dim): (usize, usize),
        what: &str,
    ) -> Result<Self> {
        let format = ty.format(head_dim)?;
        let layout = layout(ty, format, width);
        let rows = |dtype: DType, columns: usize, what: &str| {
            device.allocate(dtype, &[sequences, capacity, columns], what)
        };
        let (codes, scales) = match ty.dtype() {
            Some(dtype) => {
                (rows(dtype, width, what)?, device.allocate(DType::U32, &[1], "unused scales")?)
            }
            None => (
                rows(DType::U32, layout.code_words as usize, what)?,
                rows(DType::U32, layout.scale_words as usize, &format!("scales of {what}"))?,
            ),
        };
        Ok(Self { ty, format, width, codes, scales })
    }

    /// The type of its numbers and the numbers, (sequences, capacity, width), where it has no scales.
    pub fn plain(&self) -> Option<(DType, &Tensor)> {
        self.ty.dtype().map(|dtype| (dtype, &self.codes))
    }

    /// What holds its numbers, or the codes for them.
    pub fn numbers(&self) -> &Tensor {
        &self.codes
    }

    /// Tokens that a sequence may have.
    pub fn capacity(&self) -> usize {
        self.codes.shape()[1]
    }

    /// Columns of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// What rows are copied by: each tensor, and its elements in a row.
    pub fn rows(&self) -> impl Iterator<Item = (&Tensor, usize)> {
        let scales = self.ty.dtype().is_none().then_some(&self.scales);
        [&self.codes].into_iter().chain(scales).map(|tensor| (tensor, tensor.shape()[2]))
    }

    /// The weight type that kernels decode.
    pub(super) fn weight(&self) -> &'static WeightType {
        self.format.ty
    }

    /// The layout words for kernels.
    pub(super) fn layout(&self) -> Layout {
        layout(self.ty, self.format, self.width)
    }

    /// The bindings of kernels that decode it: codes and scales as words.
    pub(super) fn words(&self) -> (Tensor, &Tensor) {
        (self.codes.words(), &self.scales)
    }

    /// Appends `x`, (tokens, width), behind what each sequence holds already.
    pub fn append(&self, device: &Device, x: &Tensor, past: &Tensor) -> Result<()> {
        match self.plain() {
            Some((dtype, numbers)) if dtype == x.dtype() => {
                append::append(device, x, past, numbers, self.capacity())
            }
            _ => append_rounded::append_rounded(device, x, past, self),
        }
    }
}

/// The variants of kernels that decode a cache.
pub(super) fn decoding_variants() -> impl Iterator<Item = Variant> {
    CACHE_TYPES.iter().map(|ty| weights::variant(ty.weight()))
}

/// The fragment that decodes a variant's cache, eight columns at a time.
pub(super) fn fragment(variant: &Variant, name: &str) -> Option<&'static str> {
    let ty = variant.weight?;
    match (name, ty.bits) {
        ("cached", 32) => Some("cached_f32"),
        ("cached", 16) => Some("cached_f16"),
        ("cached", 8) => Some("cached_8"),
        ("cached", _) => Some("cached_4"),
        _ => None,
    }
}

/// Decodes rows of a call's cache, whose bindings are `(codes, scales)`.
pub(super) fn decode_rows(
    args: &Args<'_>,
    (codes, scales): (usize, usize),
    (layout, width): (Layout, usize),
    rows: std::ops::Range<usize>,
) -> Vec<f32> {
    let ty = args.variant.weight.expect("a variant of a kernel with a cache names its type");
    let words = layout.code_words as usize;
    let codes_of = |row: usize| &args.tensors[codes].words[row * words..(row + 1) * words];
    let mut values = vec![0.0; rows.len() * width];
    for (row, line) in rows.zip(values.chunks_exact_mut(width)) {
        match ty.bits {
            32 => line.copy_from_slice(bytemuck::cast_slice(codes_of(row))),
            16 => {
                let halves: &[u16] = bytemuck::cast_slice(codes_of(row));
                let wide = halves.iter().map(|bits| f16::from_bits(*bits).to_f32());
                line.iter_mut().zip(wide).for_each(|(value, wide)| *value = wide);
            }
            _ => weights::decode_row(args, (codes, scales), row, layout, line),
        }
    }
    values
}
