//! GGUF's blocks to packed matrices and back: the same numbers in another order of bits, so nothing is lost.
//!
//! A type is a row of the table of its family: the weight format that holds its numbers, and two functions between the bytes of a
//! block and a [`Block`]. What is here knows no type's bits.

use rayon::prelude::*;

use super::{GgmlType, affine, fp4, iq, iq4, k_quants, ternary};
use crate::tensor::{
    BLOCK, Packed, SUPER_BLOCK, Scale, WHOLE_ROW, WeightFormat, block, weight_type,
};

/// A type of GGUF whose blocks a weight format holds exactly.
pub(super) struct BlockType {
    pub(super) ty: GgmlType,
    /// The weight type.
    pub(super) name: &'static str,
    /// Columns of its groups: as many as a block has, or a part of them.
    pub(super) group: u32,
    /// Takes the bytes of a block apart. The codes are 0 before.
    pub(super) unpack: fn(&[u8], &mut Block),
    /// Puts a block together in bytes that are 0.
    pub(super) pack: fn(&Block, &mut [u8]),
}

/// A block taken apart. Of shorter ones only the first codes and groups count.
pub(super) struct Block {
    pub(super) codes: [u8; SUPER_BLOCK],
    /// A group's scale and second number, as [`Packed::group`] has them.
    pub(super) groups: [(u16, u16); SUPER_BLOCK / 16],
    /// f16 bits of a super-block's scale and of that of its minima.
    pub(super) scales: (u16, u16),
}

/// Every family's types. Where a format has two, the first is what is written.
const FAMILIES: [&[BlockType]; 5] =
    [&affine::TYPES, &k_quants::TYPES, &iq4::TYPES, &ternary::TYPES, &fp4::TYPES];

impl BlockType {
    fn of(ty: GgmlType) -> Option<&'static BlockType> {
        FAMILIES.into_iter().flatten().find(|row| row.ty == ty)
    }

    fn holding(format: WeightFormat) -> Option<&'static BlockType> {
        FAMILIES.into_iter().flatten().find(|row| row.format() == format)
    }

    fn format(&self) -> WeightFormat {
        let ty = weight_type(self.name).expect("the tables of GGUF's types name weight types");
        WeightFormat { ty, group_size: self.group }
    }

    /// Groups of a block.
    fn groups(&self) -> usize {
        self.ty.block_elements() / self.group as usize
    }
}

/// Types whose numbers stand one by one, and their bytes.
const PLAIN: [(GgmlType, &str, usize); 3] =
    [(GgmlType::F32, "f32", 4), (GgmlType::F16, "f16", 2), (GgmlType::Bf16, "bf16", 2)];

/// A tensor's blocks as a matrix, in the format that holds them exactly: of codebooks of vectors f32. `None` without a
/// decoder. NVFP4's scale of the tensor is 1.
pub fn unpack(ty: GgmlType, bytes: &[u8], rows: usize, columns: usize) -> Option<Packed> {
    assert_eq!(
        Some(bytes.len() as u64),
        ty.bytes_of(&[rows, columns]),
        "a tensor has as many bytes as its shape and type make"
    );
    let format = weight_format(ty)?;
    if let Some(decode) = iq::decoder(ty) {
        let mut packed = Packed::zeros(format, rows, columns);
        let line_bytes = columns / ty.block_elements() * ty.block_bytes();
        let lines = bytes.par_chunks_exact(line_bytes.max(1));
        let words = packed.codes.par_chunks_exact_mut(columns.max(1));
        lines.zip(words).for_each(|(line, words)| iq::decoded_row(ty, decode, line, words));
        return Some(packed);
    }
    let Some(row) = BlockType::of(ty) else {
        return Some(match ty {
            GgmlType::F32 => words_32bit(bytes, rows, columns),
            _ => Packed::from_16bit(format, bytes, rows, columns),
        });
    };
    let mut packed = Packed::zeros(format, rows, columns);
    let lines = bytes.par_chunks_exact((columns / ty.block_elements() * ty.block_bytes()).max(1));
    let codes = packed.codes.par_chunks_exact_mut(format.code_words_per_row(columns).max(1));
    let scales = packed.scales.par_chunks_exact_mut(format.scale_words_per_row(columns).max(1));
    lines.zip(codes).zip(scales).for_each(|((bytes, codes), scales)| {
        let line = unpacked_row(row, bytes, columns);
        codes.copy_from_slice(&line.codes);
        scales.copy_from_slice(&line.scales);
    });
    Some(packed)
}

/// The format that [`unpack`] gives for a type. `None` without a decoder.
pub fn weight_format(ty: GgmlType) -> Option<WeightFormat> {
    let plain = PLAIN.iter().find(|(plain, ..)| *plain == ty);
    let plain = plain.and_then(|(_, name, _)| weight_type(name));
    match plain {
        Some(ty) => Some(WeightFormat { ty, group_size: WHOLE_ROW }),
        None if iq::decoder(ty).is_some() => Some(WeightFormat::f32()),
        None => BlockType::of(ty).map(BlockType::format),
    }
}

/// The type that holds a format exactly in rows of `columns`: what [`pack`] writes, zeros that a pattern leaves out included.
/// `None` if there is none.
pub fn holds(format: WeightFormat, columns: usize) -> Option<GgmlType> {
    let format = format.dense();
    if let Some((ty, ..)) = PLAIN.iter().find(|(_, name, _)| *name == format.ty.name) {
        return Some(*ty);
    }
    let ty = BlockType::holding(format)?.ty;
    (columns > 0 && columns.is_multiple_of(ty.block_elements())).then_some(ty)
}

/// A matrix as a tensor's blocks, for the formats that GGUF holds exactly; `None` for others. NVFP4's scale of the tensor is not
/// among them.
pub fn pack(packed: &Packed) -> Option<(GgmlType, Vec<u8>)> {
    if packed.format.ty.is_sparse() {
        return pack(&packed.dense());
    }
    let ty = holds(packed.format, packed.columns)?;
    if let Some((_, _, size)) = PLAIN.iter().find(|(plain, ..)| *plain == ty) {
        return Some((ty, pack_plain(packed, *size)));
    }
    let row = BlockType::of(ty)?;
    let row_bytes = packed.columns / ty.block_elements() * ty.block_bytes();
    let mut bytes = vec![0; packed.rows * row_bytes];
    let lines = bytes.par_chunks_exact_mut(row_bytes).enumerate();
    lines.for_each(|(at, bytes)| pack_row(row, packed, at, bytes));
    Some((ty, bytes))
}

/// A row's blocks as a matrix of one row.
fn unpacked_row(row: &BlockType, bytes: &[u8], columns: usize) -> Packed {
    let mut line = Packed::zeros(row.format(), 1, columns);
    if line.format.ty.scale == Scale::TwoLevel {
        line.set_row_scale(0, 1.0);
    }
    let (bits, elements) = (line.format.ty.bits as usize, row.ty.block_elements());
    let mut block = Block { codes: [0; SUPER_BLOCK], groups: Default::default(), scales: (0, 0) };
    for (index, bytes) in bytes.chunks_exact(row.ty.block_bytes()).enumerate() {
        block.codes[..elements].fill(0);
        (row.unpack)(bytes, &mut block);
        if line.format.ty.super_block().is_some() {
            line.set_super_scales(0, index, block.scales.0, block.scales.1);
        }
        for (group, (scale, second)) in block.groups[..row.groups()].iter().enumerate() {
            line.set_group(0, index * row.groups() + group, *scale, *second);
        }
        let words = line.codes[index * elements / BLOCK * bits..].chunks_exact_mut(bits);
        let (codes, _) = block.codes[..elements].as_chunks::<BLOCK>();
        codes.iter().zip(words).for_each(|(codes, words)| block::pack(bits, codes, words));
    }
    line
}

/// Puts the blocks of a row together.
fn pack_row(row: &BlockType, packed: &Packed, at: usize, bytes: &mut [u8]) {
    let (bits, elements) = (packed.format.ty.bits as usize, row.ty.block_elements());
    let words = packed.format.code_words_per_row(packed.columns);
    let line = &packed.codes[at * words..(at + 1) * words];
    let mut block = Block { codes: [0; SUPER_BLOCK], groups: Default::default(), scales: (0, 0) };
    for (index, bytes) in bytes.chunks_exact_mut(row.ty.block_bytes()).enumerate() {
        if packed.format.ty.super_block().is_some() {
            block.scales = packed.super_scales(at, index);
        }
        for (group, numbers) in block.groups[..row.groups()].iter_mut().enumerate() {
            *numbers = packed.group(at, index * row.groups() + group);
        }
        let words = line[index * elements / BLOCK * bits..].chunks_exact(bits);
        let (codes, _) = block.codes[..elements].as_chunks_mut::<BLOCK>();
        codes.iter_mut().zip(words).for_each(|(codes, words)| *codes = block::unpack(bits, words));
        (row.pack)(&block, bytes);
    }
}

/// Adds `bits` bits of each code, `above` bits up in it. `place` says where an element's stand: the byte, and the lowest bit in
/// it.
pub(super) fn read_codes(
    bytes: &[u8],
    (bits, above): (u32, u32),
    place: impl Fn(usize) -> (usize, u32),
    codes: &mut [u8],
) {
    let mask = (1 << bits) - 1;
    for (e, code) in codes.iter_mut().enumerate() {
        let (byte, low) = place(e);
        *code |= (bytes[byte] >> low & mask) << above;
    }
}

/// The reverse of [`read_codes`], into bits that are 0.
pub(super) fn write_codes(
    codes: &[u8],
    (bits, above): (u32, u32),
    place: impl Fn(usize) -> (usize, u32),
    bytes: &mut [u8],
) {
    let mask = (1 << bits) - 1;
    for (e, code) in codes.iter().enumerate() {
        let (byte, low) = place(e);
        bytes[byte] |= (code >> above & mask) << low;
    }
}

/// The 16 bits at a place.
pub(super) fn half_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Stores 16 bits at a place.
pub(super) fn put_half(bytes: &mut [u8], at: usize, bits: u16) {
    bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
}

/// 32-bit codes (f32 bits), row-major, little-endian bytes that need not be aligned, kept as they are.
pub(in crate::formats) fn words_32bit(bytes: &[u8], rows: usize, columns: usize) -> Packed {
    let mut packed = Packed::zeros(WeightFormat::f32(), rows, columns);
    let words = packed.format.code_words_per_row(columns);
    let lines = packed.codes.par_chunks_mut(words.max(1));
    lines.zip(bytes.par_chunks((4 * columns).max(1))).for_each(|(words, line)| {
        let (values, _) = line.as_chunks::<4>();
        for (word, value) in words.iter_mut().zip(values) {
            *word = u32::from_le_bytes(*value);
        }
    });
    packed
}

fn pack_plain(packed: &Packed, size: usize) -> Vec<u8> {
    let words = packed.format.code_words_per_row(packed.columns);
    let mut bytes = vec![0; packed.rows * packed.columns * size];
    bytes
        .par_chunks_mut((packed.columns * size).max(1))
        .zip(packed.codes.par_chunks(words.max(1)))
        .for_each(|(line, words)| {
            let (whole, rest) = line.as_chunks_mut::<4>();
            for (target, word) in whole.iter_mut().zip(words) {
                *target = word.to_le_bytes();
            }
            if let Some(word) = words.get(whole.len()) {
                rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]);
            }
        });
    bytes
}
