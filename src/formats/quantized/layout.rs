//! Where the numbers of one weight stand in another tool's tensors, read and written by one description.
//!
//! A [`Layout`] says which tensors a weight has and how codes, scales, zero points and groups stand in them; the methods differ
//! in nothing else. From it come the checks of shapes and types, the [`WeightFormat`] that the weight becomes, the weight itself
//! and, the other way, the bytes of each tensor.
//!
//! What a weight becomes. The tool's own reader multiplies in the type T of its scales. A weight format of ours holds the
//! product before that rounding: `T(value)` is what the reader has, bit for bit (with a bias, MLX rounds twice). It is used
//! where all scales, and biases, are exact in f16, which is what our formats store. Where one is not, or the columns of a group
//! are no neighbours, the weight is dequantized to T as the reader does it, and says why.

use std::borrow::Cow;
use std::path::Path;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::formats::StoredTensor;
use crate::formats::safetensors::Safetensors;
use crate::tensor::{
    BLOCK, DType, Packed, Scale, WHOLE_ROW, WeightFormat, block, minifloat, weight_type,
};

/// The axis of a weight along which codes follow one another within words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    /// Input features.
    Columns,
    /// Output features.
    Rows,
}

/// How a stored number is a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// As it is.
    Unsigned,
    /// The code less half its range, in two's complement.
    Signed,
    /// The code less one: zero points of GPTQ's first version. What is stored as 15 is 16, as vLLM and AutoGPTQ read it.
    LessOne,
}

/// A matrix of codes of few bits in the words of a tensor, the lowest bits first. A code may stand in two words.
#[derive(Clone, Debug)]
pub(super) struct Codes {
    /// The tensor.
    pub name: String,
    /// Of one code.
    pub bits: u32,
    /// The type of the words.
    pub word: DType,
    /// How codes fill words.
    pub along: Along,
    /// Whether the tensor's first axis is that of the columns.
    pub columns_first: bool,
    /// Where the codes of a word stand in it, if not one after the other.
    pub order: Option<&'static [usize; 8]>,
    /// How they are stored.
    pub stored: Stored,
}

/// A tensor of one number for each group of each row.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    /// The tensor.
    pub name: String,
    /// The types that it may have; the first is written.
    pub types: &'static [DType],
    /// Whether its first axis is that of the groups.
    pub columns_first: bool,
}

/// What a code stands for.
#[derive(Clone, Debug)]
pub(super) enum Grid {
    /// `scale * (code - zero)`; without zero points half the range is one.
    Integers { scales: Numbers, zeros: Option<Codes> },
    /// `scale * code + bias`.
    Offset { scales: Numbers, biases: Numbers },
    /// `scale * level(code)`.
    Levels { scales: Numbers },
    /// `2^(byte - 127) * level(code)`.
    Exponents { scales: Numbers },
    /// `(whole * scale) * level(code)`, or `(scale / whole) * level(code)`; scales in E4M3.
    TwoLevel { scales: Numbers, whole: Option<Whole> },
}

/// A tensor's one scale in f32.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    /// The tensor.
    pub name: String,
    /// Whether scales are divided by it, not multiplied.
    pub divides: bool,
}

/// The tensors of one weight.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub rows: usize,
    pub columns: usize,
    pub codes: Codes,
    pub grid: Grid,
    /// Columns that share a scale.
    pub group: usize,
    /// Rows that share a scale: 1, or more where the format has blocks.
    pub block_rows: usize,
    /// The group of each column (i32), where they may be in another order.
    pub group_index: Option<String>,
    /// The shape in i64, of compressed-tensors.
    pub shape: Option<String>,
}

/// The types that scales are stored in.
pub(super) const FLOATS: &[DType] = &[DType::F16, DType::Bf16, DType::F32];

impl Codes {
    /// Codes of `bits` bits in words of 32, along the columns of a row, as most tools have them.
    pub(super) fn of_rows(name: String, bits: u32, word: DType) -> Self {
        let (along, order, stored) = (Along::Columns, None, Stored::Unsigned);
        Self { name, bits, word, along, columns_first: false, order, stored }
    }

    fn word_bits(&self) -> usize {
        8 * self.word.size()
    }

    /// Codes along the axis of the words, and lines of words.
    fn lines(&self, rows: usize, columns: usize) -> (usize, usize) {
        match self.along {
            Along::Columns => (columns, rows),
            Along::Rows => (rows, columns),
        }
    }

    fn words(&self, rows: usize, columns: usize) -> usize {
        let per_line = self.lines(rows, columns).0;
        (per_line * self.bits as usize).div_ceil(self.word_bits())
    }

    fn shape(&self, rows: usize, columns: usize) -> Vec<usize> {
        let words = self.words(rows, columns);
        let (rows, columns) = match self.along {
            Along::Columns => (rows, words),
            Along::Rows => (words, columns),
        };
        if self.columns_first { vec![columns, rows] } else { vec![rows, columns] }
    }

    /// The first word of a code and the bit where it begins.
    fn place(
        &self,
        row: usize,
        column: usize,
        rows: usize,
        columns: usize,
    ) -> (usize, usize, usize) {
        let (line, code) = match self.along {
            Along::Columns => (row, column),
            Along::Rows => (column, row),
        };
        let (bits, word_bits) = (self.bits as usize, self.word_bits());
        let bit = match self.order {
            None => code * bits,
            Some(order) => (code / 8 * 8 + order[code % 8]) * bits,
        };
        let (_, lines) = self.lines(rows, columns);
        let words = self.words(rows, columns);
        // Whether the words of a line are neighbours.
        let (first, next) = match self.columns_first == (self.along == Along::Rows) {
            true => (line * words + bit / word_bits, 1),
            false => (bit / word_bits * lines + line, lines),
        };
        (first, next, bit % word_bits)
    }

    fn word(&self, bytes: &[u8], index: usize) -> u32 {
        match self.word.size() {
            1 => bytes[index].into(),
            _ => u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[4 * index + byte])),
        }
    }

    /// The code at a place of a matrix.
    fn get(
        &self,
        bytes: &[u8],
        (row, column): (usize, usize),
        (rows, columns): (usize, usize),
    ) -> u32 {
        let (first, next, shift) = self.place(row, column, rows, columns);
        let mut code = self.word(bytes, first) >> shift;
        let held = self.word_bits() - shift;
        if held < self.bits as usize {
            code |= self.word(bytes, first + next) << held;
        }
        let code = code & ((1 << self.bits) - 1);
        match self.stored {
            Stored::Unsigned => code,
            Stored::Signed => code ^ (1 << (self.bits - 1)),
            Stored::LessOne => code + 1,
        }
    }

    /// Stores a code at a place that holds zero bits.
    fn set(
        &self,
        bytes: &mut [u8],
        (row, column): (usize, usize),
        (rows, columns): (usize, usize),
        code: u32,
    ) {
        let code = match self.stored {
            Stored::Unsigned => code,
            Stored::Signed => code ^ (1 << (self.bits - 1)),
            Stored::LessOne => code - 1,
        };
        let (first, next, shift) = self.place(row, column, rows, columns);
        let mut put = |index: usize, part: u32| {
            let size = self.word.size();
            let own = &mut bytes[index * size..(index + 1) * size];
            own.iter_mut().zip(part.to_le_bytes()).for_each(|(byte, part)| *byte |= part);
        };
        put(first, code << shift);
        let held = self.word_bits() - shift;
        if held < self.bits as usize {
            put(first + next, code >> held);
        }
    }

    /// The codes that a number of so many bits may be.
    fn range(&self) -> std::ops::RangeInclusive<u32> {
        match self.stored {
            Stored::LessOne => 1..=1 << self.bits,
            _ => 0..=(1 << self.bits) - 1,
        }
    }
}

impl Numbers {
    fn shape(&self, rows: usize, groups: usize) -> Vec<usize> {
        if self.columns_first { vec![groups, rows] } else { vec![rows, groups] }
    }

    fn place(&self, row: usize, group: usize, rows: usize, groups: usize) -> usize {
        if self.columns_first { group * rows + row } else { row * groups + group }
    }
}

/// A tensor of a weight: what it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Part<'a> {
    /// Its name.
    pub name: &'a str,
    /// The types that it may have; the first is written.
    pub types: &'a [DType],
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Scales and zero points of a weight as they are found, row by row of those that have their own.
struct Found<'a> {
    scales: Vec<f32>,
    /// Zero points or biases; of integers without them the middle.
    seconds: Vec<f32>,
    /// E4M3 and E8M0 scales.
    bytes: Cow<'a, [u8]>,
    whole: f32,
    /// The group of each column, where that is not their order.
    order: Option<Vec<usize>>,
    /// The type that the tool's reader multiplies in.
    ty: DType,
}

/// What a weight becomes here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decision {
    pub format: WeightFormat,
    /// Why it is dequantized, if it is.
    pub because: Option<&'static str>,
}

impl Layout {
    fn scale_rows(&self) -> usize {
        self.rows.div_ceil(self.block_rows)
    }

    fn groups(&self) -> usize {
        self.columns.div_ceil(self.group)
    }

    /// All tensors of the weight.
    pub(super) fn parts(&self) -> Vec<Part<'_>> {
        let (rows, groups) = (self.scale_rows(), self.groups());
        let codes = |codes: &'_ Codes, rows, columns| (codes.word, codes.shape(rows, columns));
        let (word, shape) = codes(&self.codes, self.rows, self.columns);
        let mut parts = vec![Part { name: &self.codes.name, types: slice_of(word), shape }];
        let numbers = |numbers: &Numbers| {
            let shape = numbers.shape(rows, groups);
            (numbers.types, shape)
        };
        let mut add = |name, (types, shape)| parts.push(Part { name, types, shape });
        match &self.grid {
            Grid::Integers { scales, zeros } => {
                add(&scales.name, numbers(scales));
                if let Some(zeros) = zeros {
                    add(&zeros.name, (slice_of(zeros.word), zeros.shape(rows, groups)));
                }
            }
            Grid::Offset { scales, biases } => {
                add(&scales.name, numbers(scales));
                add(&biases.name, numbers(biases));
            }
            Grid::Levels { scales } | Grid::Exponents { scales } => {
                add(&scales.name, numbers(scales));
            }
            Grid::TwoLevel { scales, whole } => {
                add(&scales.name, numbers(scales));
                if let Some(whole) = whole {
                    add(&whole.name, (&[DType::F32], vec![1]));
                }
            }
        }
        if let Some(name) = &self.group_index {
            add(name, (&[DType::I32], vec![self.columns]));
        }
        if let Some(name) = &self.shape {
            add(name, (&[DType::I64], vec![2]));
        }
        parts
    }

    /// An error if a tensor is missing or of another type or shape. Axes of length 1 may be left out.
    pub(super) fn check(&self, tensors: &Safetensors, path: &Path) -> Result<()> {
        for part in self.parts() {
            let wrong = |found: String| {
                let types: Vec<&str> = part.types.iter().map(|ty| ty.name()).collect();
                let expected = format!("{} of shape {:?}", types.join(" or "), part.shape);
                Error::Tensor { path: path.into(), tensor: part.name.into(), expected, found }
            };
            let Some(tensor) = tensors.get(part.name) else {
                return Err(wrong("no such tensor".into()));
            };
            let squeezed = |shape: &[usize]| -> Vec<usize> {
                shape.iter().copied().filter(|length| *length != 1).collect()
            };
            let is_type = part.types.iter().any(|ty| ty.name() == tensor.ty.name());
            if !is_type || squeezed(&tensor.shape) != squeezed(&part.shape) {
                return Err(wrong(format!("{} of shape {:?}", tensor.ty, tensor.shape)));
            }
        }
        Ok(())
    }

    /// What the weight becomes, by its scales. The parts have been checked.
    pub(super) fn decide(&self, tensors: &Safetensors) -> Result<Decision> {
        Ok(self.decision(&self.find(tensors)?))
    }

    fn decision(&self, found: &Found<'_>) -> Decision {
        let because = match self.packed_format(found) {
            Ok(format) => return Decision { format, because: None },
            Err(because) => Some(because),
        };
        let format = match found.ty {
            DType::F16 => WeightFormat::f16(),
            DType::Bf16 => WeightFormat::bf16(),
            _ => WeightFormat::f32(),
        };
        Decision { format, because }
    }

    /// The row of our table that holds the weight exactly, or why none does.
    fn packed_format(&self, found: &Found<'_>) -> Result<WeightFormat, &'static str> {
        if found.order.is_some() {
            return Err("the columns of a group are not neighbours (activation order)");
        }
        let group_size = group_size(self.group, self.columns)
            .ok_or("groups of a number of columns that 16 does not divide")?;
        let exact = |value: &f32| !value.is_finite() || f16::from_f32(*value).to_f32() == *value;
        if !found.scales.iter().all(exact) {
            return Err("f16 does not hold all scales");
        }
        let bits = self.codes.bits;
        let named = |name: &str| {
            weight_type(name)
                .map(|ty| WeightFormat { ty, group_size })
                .ok_or("no format has such codes")
        };
        match &self.grid {
            Grid::Integers { .. } => {
                let middle = (1u32 << (bits - 1)) as f32;
                match found.seconds.iter().all(|zero| *zero == middle) {
                    true => named(&format!("int{bits}")),
                    false => named(&format!("uint{bits}z")),
                }
            }
            Grid::Offset { .. } if !found.seconds.iter().all(exact) => {
                Err("f16 does not hold all biases")
            }
            Grid::Offset { .. } => named(&format!("uint{bits}m")),
            Grid::Exponents { .. } if bits == 4 => named("mxfp4"),
            Grid::Levels { .. } | Grid::Exponents { .. } => named("fp8_e4m3"),
            Grid::TwoLevel { whole, .. } if factor(whole, found).is_none() => {
                Err("no f32 factor gives what a division by the global scale gives")
            }
            Grid::TwoLevel { .. } => named("nvfp4"),
        }
    }

    /// Reads the small tensors.
    fn find<'a>(&self, tensors: &'a Safetensors) -> Result<Found<'a>> {
        let (rows, groups) = (self.scale_rows(), self.groups());
        let part = |name: &str| part(tensors, name);
        let read = |numbers: &Numbers| -> Result<(Vec<f32>, DType)> {
            let tensor = part(&numbers.name);
            let ty = numbers.types.iter().copied().find(|ty| ty.name() == tensor.ty.name());
            let (ty, bytes) = (ty.expect("the parts have been checked"), tensor.bytes()?);
            let value = |index: usize| {
                ty.get(&bytes, numbers.place(index / groups, index % groups, rows, groups)) as f32
            };
            Ok(((0..rows * groups).map(value).collect(), ty))
        };
        let mut found = Found {
            scales: Vec::new(),
            seconds: Vec::new(),
            bytes: Cow::Borrowed(&[]),
            whole: 1.0,
            order: None,
            // What multiplies by bytes of scales computes in bf16.
            ty: DType::Bf16,
        };
        match &self.grid {
            Grid::Integers { scales, zeros } => {
                (found.scales, found.ty) = read(scales)?;
                found.seconds = match zeros {
                    None => vec![(1u32 << (self.codes.bits - 1)) as f32],
                    Some(zeros) => {
                        let bytes = part(&zeros.name).bytes()?;
                        let zero = |index: usize| {
                            let place = (index / groups, index % groups);
                            zeros.get(&bytes, place, (rows, groups)) as f32
                        };
                        (0..rows * groups).map(zero).collect()
                    }
                };
            }
            Grid::Offset { scales, biases } => {
                (found.scales, found.ty) = read(scales)?;
                let (seconds, ty) = read(biases)?;
                if ty != found.ty {
                    found.ty = DType::F32;
                }
                found.seconds = seconds;
            }
            Grid::Levels { scales } => (found.scales, found.ty) = read(scales)?,
            Grid::Exponents { scales } => {
                found.bytes = part(&scales.name).bytes()?;
                if self.codes.bits == 8 {
                    found.scales = found.bytes.iter().map(|byte| exponent(*byte)).collect();
                }
            }
            Grid::TwoLevel { scales, whole } => {
                found.bytes = part(&scales.name).bytes()?;
                if let Some(whole) = whole {
                    let tensor = part(&whole.name);
                    found.whole = DType::F32.get(&tensor.bytes()?, 0) as f32;
                    if !(found.whole > 0.0 && found.whole.is_finite()) {
                        return Err(unfit(&tensor, "a positive number", found.whole));
                    }
                }
            }
        }
        if let Some(name) = &self.group_index {
            found.order = self.group_order(&part(name))?;
        }
        if let Some(name) = &self.shape {
            let tensor = part(name);
            let bytes = tensor.bytes()?;
            let shape = [0, 1].map(|axis| DType::I64.get(&bytes, axis));
            let own = [self.rows, self.columns];
            if shape != own.map(|length| length as f64) {
                return Err(unfit(&tensor, &format!("{own:?}"), format!("{shape:?}")));
            }
        }
        Ok(found)
    }

    /// The groups of the columns, `None` where they are in order. compressed-tensors writes -1 for all where there is no other
    /// order.
    fn group_order(&self, tensor: &StoredTensor<'_>) -> Result<Option<Vec<usize>>> {
        let (bytes, groups) = (tensor.bytes()?, self.groups());
        let index: Vec<i64> =
            (0..self.columns).map(|column| DType::I32.get(&bytes, column) as i64).collect();
        if index.iter().all(|group| *group == -1) {
            return Ok(None);
        }
        if let Some(group) = index.iter().find(|group| !(0..groups as i64).contains(group)) {
            return Err(unfit(tensor, &format!("groups below {groups}"), group));
        }
        let order: Vec<usize> = index.into_iter().map(|group| group as usize).collect();
        let in_order = order.iter().enumerate().all(|(column, g)| *g == column / self.group);
        Ok((!in_order).then_some(order))
    }

    /// The weight. The parts have been checked.
    pub(super) fn load(&self, tensors: &Safetensors) -> Result<Packed> {
        let found = self.find(tensors)?;
        let bytes = part(tensors, &self.codes.name).bytes()?;
        let decision = self.decision(&found);
        match decision.because {
            None => Ok(self.pack(&found, &bytes, decision.format)),
            Some(_) => Ok(self.dequantize(&found, &bytes, decision.format)),
        }
    }

    fn code(&self, bytes: &[u8], row: usize, column: usize) -> u32 {
        self.codes.get(bytes, (row, column), (self.rows, self.columns))
    }

    fn pack(&self, found: &Found<'_>, bytes: &[u8], format: WeightFormat) -> Packed {
        let mut packed = Packed::zeros(format, self.rows, self.columns);
        let (bits, words) = (self.codes.bits as usize, format.code_words_per_row(self.columns));
        let lines = packed.codes.par_chunks_exact_mut(words.max(1)).enumerate();
        lines.for_each(|(row, line)| {
            for (index, words) in line.chunks_mut(bits).enumerate() {
                let mut codes = [0; BLOCK];
                let first = index * BLOCK;
                for (place, code) in codes.iter_mut().take(self.columns - first).enumerate() {
                    *code = self.code(bytes, row, first + place) as u8;
                }
                block::pack(bits, &codes, words);
            }
        });
        let (step, groups) = (format.group_columns(self.columns), self.groups());
        let of_tensor = match &self.grid {
            Grid::TwoLevel { whole, .. } => factor(whole, found).unwrap_or(1.0),
            _ => 1.0,
        };
        for row in 0..self.rows {
            if format.ty.scale == Scale::TwoLevel {
                packed.set_row_scale(row, of_tensor);
            }
            for group in 0..format.groups_per_row(self.columns) {
                let index = row / self.block_rows * groups + group * step / self.group;
                let half = |values: &[f32]| values.get(index).map_or(0, |value| f16_bits(*value));
                let scale = match format.ty.scale {
                    Scale::TwoLevel | Scale::PowerOfTwo => found.bytes[index].into(),
                    _ => half(&found.scales),
                };
                let second = match found.seconds.len() {
                    1 => f16_bits(found.seconds[0]),
                    _ => half(&found.seconds),
                };
                packed.set_group(row, group, scale, second);
            }
        }
        packed
    }

    /// The values in the type that the tool's reader multiplies in, rounded as it rounds.
    fn dequantize(&self, found: &Found<'_>, bytes: &[u8], format: WeightFormat) -> Packed {
        let round: fn(f32) -> f32 = match found.ty {
            DType::F16 => |value| f16::from_f32(value).to_f32(),
            DType::Bf16 => |value| bf16::from_f32(value).to_f32(),
            _ => |value| value,
        };
        let groups = self.groups();
        let value = |row: usize, column: usize| {
            let group = found.order.as_ref().map_or(column / self.group, |order| order[column]);
            let index = row / self.block_rows * groups + group;
            let code = self.code(bytes, row, column);
            let second = || found.seconds[if found.seconds.len() == 1 { 0 } else { index }];
            round(match &self.grid {
                Grid::Integers { .. } => found.scales[index] * (code as f32 - second()),
                Grid::Offset { .. } => round(found.scales[index] * code as f32) + second(),
                Grid::Levels { .. } => found.scales[index] * level(code, self.codes.bits),
                Grid::Exponents { .. } => {
                    exponent(found.bytes[index]) * level(code, self.codes.bits)
                }
                Grid::TwoLevel { whole, .. } => {
                    let scale = minifloat::decode(found.bytes[index].into(), 4, 3);
                    let scale = match whole {
                        Some(whole) if whole.divides => scale / found.whole,
                        _ => scale * found.whole,
                    };
                    scale * level(code, self.codes.bits)
                }
            })
        };
        let places = (0..self.rows * self.columns).into_par_iter();
        let values: Vec<f32> =
            places.map(|at| value(at / self.columns, at % self.columns)).collect();
        if format == WeightFormat::f32() {
            return Packed::from_f32(&values, self.rows, self.columns);
        }
        let mut narrow = vec![0; 2 * values.len()];
        for (index, value) in values.into_iter().enumerate() {
            found.ty.set(&mut narrow, index, value.into());
        }
        Packed::from_16bit(format, &narrow, self.rows, self.columns)
    }
}

/// A tensor whose presence has been checked.
fn part<'a>(tensors: &'a Safetensors, name: &str) -> StoredTensor<'a> {
    tensors.get(name).expect("the parts have been checked")
}

fn unfit(tensor: &StoredTensor<'_>, expected: &str, found: impl ToString) -> Error {
    Error::Tensor {
        path: tensor.source.path().into(),
        tensor: tensor.name.into(),
        expected: expected.into(),
        found: found.to_string(),
    }
}

fn slice_of(ty: DType) -> &'static [DType] {
    match ty {
        DType::I32 => &[DType::I32],
        DType::U32 => &[DType::U32],
        DType::U8 => &[DType::U8],
        DType::I8 => &[DType::I8],
        _ => &[DType::F8E4m3],
    }
}

/// The group size of ours that says the same: the largest power of two that divides `group`, or the whole row.
fn group_size(group: usize, columns: usize) -> Option<u32> {
    if group >= columns {
        return Some(WHOLE_ROW);
    }
    let power = 1usize << group.trailing_zeros();
    (power >= 16).then(|| u32::try_from(power).ok()).flatten()
}

fn f16_bits(value: f32) -> u16 {
    f16::from_f32(value).to_bits()
}

/// What an exponent byte stands for (E8M0).
fn exponent(byte: u8) -> f32 {
    match byte {
        0xff => f32::NAN,
        _ => f64::powi(2.0, i32::from(byte) - 127) as f32,
    }
}

/// What a code of a small float stands for: E2M1 of 4 bits, E4M3 of 8.
fn level(code: u32, bits: u32) -> f32 {
    if bits == 4 { minifloat::decode(code, 2, 1) } else { minifloat::decode(code, 4, 3) }
}

/// The f32 factor of our rows for a tensor's scale. Where a reader divides by that: the reciprocal, or a neighbour of it, that
/// gives the same bf16 values for all scales that there are and all levels; `None` if there is none.
fn factor(whole: &Option<Whole>, found: &Found<'_>) -> Option<f32> {
    if !whole.as_ref().is_some_and(|whole| whole.divides) {
        return Some(found.whole);
    }
    let scales = distinct(found.bytes.iter().copied());
    let agrees = |factor: &f32| scales.iter().all(|scale| divides_as(*scale, found.whole, *factor));
    near(found.whole.recip()).into_iter().find(agrees)
}

/// The magnitudes of E4M3 scales, each once, without NaN.
fn distinct(bytes: impl Iterator<Item = u8>) -> Vec<u32> {
    let mut there = [false; 0x80];
    bytes.for_each(|byte| there[usize::from(byte & 0x7f)] = true);
    (0..0x7f).filter(|byte| there[*byte as usize]).collect()
}

/// A positive number and the finite ones around it, the nearest first.
fn near(value: f32) -> Vec<f32> {
    let (mut all, mut up, mut down) = (vec![value], value, value);
    for _ in 0..8 {
        (up, down) = (up.next_up(), down.next_down());
        all.extend([up, down]);
    }
    all.retain(|value| value.is_finite() && *value > 0.0);
    all
}

/// Whether `scale / divisor * level` is `factor * scale * level` in bf16, for an E4M3 scale and all levels.
fn divides_as(scale: u32, divisor: f32, factor: f32) -> bool {
    let scale = minifloat::decode(scale, 4, 3);
    (0..8).all(|code| {
        let level = level(code, 4);
        bf16::from_f32(scale / divisor * level) == bf16::from_f32(factor * scale * level)
    })
}

/// What of a weight a layout does not hold: what it holds, and what was found.
pub(super) struct Unheld {
    pub expected: String,
    pub found: String,
}

fn unheld(expected: impl Into<String>, found: impl ToString) -> Unheld {
    Unheld { expected: expected.into(), found: found.to_string() }
}

impl Layout {
    /// The bytes of one of the parts, in the first of its types, for a weight of ours whose groups are as large or larger.
    pub(super) fn store(&self, packed: &Packed, part: &Part<'_>) -> Result<Vec<u8>, Unheld> {
        let ty = part.types[0];
        let mut bytes = vec![0; part.shape.iter().product::<usize>() * ty.size()];
        let numbers = |bytes: &mut [u8],
                       numbers: &Numbers,
                       value: &dyn Fn(usize, usize) -> Stores| {
            let (rows, groups) = (self.scale_rows(), self.groups());
            for (row, group) in (0..rows).flat_map(|row| (0..groups).map(move |g| (row, g))) {
                let (value, place) = (value(row, group)?, numbers.place(row, group, rows, groups));
                ty.set(bytes, place, value);
            }
            Ok(())
        };
        let scale = |row, group| Ok(f64::from(self.group_of(packed, row, group).0));
        let byte = |row, group| Ok(f64::from(packed.group(row, self.own_group(packed, group)).0));
        if part.name == self.codes.name {
            let shape = (self.rows, self.columns);
            for (row, column) in (0..self.rows).flat_map(|r| (0..self.columns).map(move |c| (r, c)))
            {
                self.codes.set(&mut bytes, (row, column), shape, packed.code(row, column));
            }
            return Ok(bytes);
        }
        if Some(part.name) == self.group_index.as_deref() {
            (0..self.columns).for_each(|c| ty.set(&mut bytes, c, (c / self.group) as f64));
            return Ok(bytes);
        }
        if Some(part.name) == self.shape.as_deref() {
            [self.rows, self.columns]
                .iter()
                .enumerate()
                .for_each(|(axis, length)| ty.set(&mut bytes, axis, *length as f64));
            return Ok(bytes);
        }
        match &self.grid {
            Grid::Integers { zeros: Some(zeros), .. } if part.name == zeros.name => {
                self.store_zeros(packed, zeros, &mut bytes)?;
            }
            Grid::Offset { biases, .. } if part.name == biases.name => {
                numbers(&mut bytes, biases, &|row, group| self.bias(packed, row, group))?;
            }
            Grid::Integers { scales, .. }
            | Grid::Offset { scales, .. }
            | Grid::Levels { scales } => {
                numbers(&mut bytes, scales, &scale)?;
            }
            Grid::Exponents { scales } if packed.format.ty.scale == Scale::PowerOfTwo => {
                numbers(&mut bytes, scales, &byte)?;
            }
            Grid::Exponents { scales } => {
                numbers(&mut bytes, scales, &|row, group| {
                    let scale = self.group_of(packed, row, group).0;
                    let exponent = scale.log2();
                    match exponent.fract() == 0.0 && scale > 0.0 {
                        true => Ok(f64::from(exponent) + 127.0),
                        false => Err(unheld("scales that are powers of two", scale)),
                    }
                })?;
            }
            Grid::TwoLevel { scales, .. } if part.name == scales.name => {
                for (row, group) in
                    (0..self.rows).flat_map(|row| (0..self.groups()).map(move |g| (row, g)))
                {
                    let place = scales.place(row, group, self.rows, self.groups());
                    bytes[place] = packed.group(row, self.own_group(packed, group)).0 as u8;
                }
                self.whole(packed)?;
            }
            Grid::TwoLevel { .. } => ty.set(&mut bytes, 0, self.whole(packed)?.into()),
        }
        Ok(bytes)
    }

    /// The group of ours that holds one of the tool's.
    fn own_group(&self, packed: &Packed, group: usize) -> usize {
        group * self.group / packed.format.group_columns(self.columns)
    }

    /// Scale and second number of a group of the tool's.
    fn group_of(&self, packed: &Packed, row: usize, group: usize) -> (f32, f32) {
        packed.grid(row, self.own_group(packed, group))
    }

    fn store_zeros(&self, packed: &Packed, zeros: &Codes, bytes: &mut [u8]) -> Result<(), Unheld> {
        let (rows, groups) = (self.rows, self.groups());
        let middle = (1u32 << (self.codes.bits - 1)) as f32;
        for (row, group) in (0..rows).flat_map(|row| (0..groups).map(move |g| (row, g))) {
            let zero = match packed.format.ty.scale {
                Scale::Symmetric => middle,
                _ => self.group_of(packed, row, group).1,
            };
            let range = zeros.range();
            if zero.fract() != 0.0 || !range.contains(&(zero as u32)) || zero < 0.0 {
                let expected =
                    format!("integer zero points of {} to {}", range.start(), range.end());
                return Err(unheld(expected, zero));
            }
            zeros.set(bytes, (row, group), (rows, groups), zero as u32);
        }
        Ok(())
    }

    /// What is added to `scale * code`: the offset, or what a zero point makes of it, where f16 holds that.
    fn bias(&self, packed: &Packed, row: usize, group: usize) -> Stores {
        let (scale, second) = self.group_of(packed, row, group);
        let bias = match packed.format.ty.scale {
            Scale::Offset => second,
            Scale::ZeroPoint => -scale * second,
            _ => -scale * (1u32 << (self.codes.bits - 1)) as f32,
        };
        match f16::from_f32(bias).to_f32() == bias {
            true => Ok(bias.into()),
            false => Err(unheld("groups whose smallest value f16 holds", bias)),
        }
    }

    /// The magnitudes of the E4M3 scales of a weight of ours.
    fn scales_of(&self, packed: &Packed) -> Vec<u32> {
        let groups = packed.format.groups_per_row(self.columns);
        let scale = |index| packed.group(index / groups, index % groups).0 as u8;
        distinct((0..self.rows * groups).map(scale))
    }

    /// Whether a weight is stored with another factor than its own, next to it: where the format divides by a scale, no f32
    /// number may do as multiplying did, to the last bit of bf16.
    pub(super) fn is_near(&self, packed: &Packed) -> bool {
        let Grid::TwoLevel { whole: Some(Whole { divides: true, .. }), .. } = &self.grid else {
            return false;
        };
        let words = packed.format.scale_words_per_row(self.columns);
        let first = packed.scales.chunks_exact(words.max(1)).next();
        let first = first.map_or(1.0, |row| f32::from_bits(row[0]));
        let scales = self.scales_of(packed);
        let is_same = |divisor: &f32| scales.iter().all(|s| divides_as(*s, *divisor, first));
        !near(first.recip()).iter().any(is_same)
    }

    /// The one scale of the tensor in f32, which all rows must have.
    fn whole(&self, packed: &Packed) -> Result<f32, Unheld> {
        let words = packed.format.scale_words_per_row(self.columns);
        let scales = packed.scales.chunks_exact(words.max(1)).map(|row| f32::from_bits(row[0]));
        let first = scales.clone().next().unwrap_or(1.0);
        if let Some(other) = scales.clone().find(|scale| *scale != first) {
            return Err(unheld("one f32 scale for all rows", format!("{first} and {other}")));
        }
        match &self.grid {
            Grid::TwoLevel { whole: None, .. } if first != 1.0 => {
                Err(unheld("scales without a further one of the tensor", first))
            }
            Grid::TwoLevel { whole: Some(whole), .. } if whole.divides => {
                let scales = self.scales_of(packed);
                let as_factor = |divisor: f32, factor: f32| {
                    scales.iter().all(|scale| divides_as(*scale, divisor, factor))
                };
                let mut divisors = near(first.recip());
                // One that reads as the same factor before one that reads as its neighbour.
                divisors.sort_by_key(|divisor| divisor.recip() != first);
                let exact = divisors.iter().find(|divisor| as_factor(**divisor, first));
                // Or else one that some factor next to ours is as good as: see `Layout::is_near`.
                let nearly = |divisor: &&f32| {
                    near(divisor.recip()).into_iter().any(|factor| as_factor(**divisor, factor))
                };
                let divisor = exact.or_else(|| divisors.iter().find(nearly)).copied();
                divisor.ok_or_else(|| unheld("a scale of the tensor that has a reciprocal", first))
            }
            _ => Ok(first),
        }
    }
}

/// A number to be stored, or why it is not held.
type Stores = Result<f64, Unheld>;
