//! GGUF's blocks to packed matrices and back: the same numbers in another order of bits, so nothing is lost.
//!
//! A block is 32 codes of a row: scale, then offset (types _1), then 4 bytes of fifth bits (types Q5), then the low
//! nibbles. Byte `j` of the nibbles holds element `j` (low) and element `j + 16` (high); bit `j` of the fifth bits
//! belongs to element `j`. Q8_0 has signed bytes instead.

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{GgmlType, k_quants};
use crate::tensor::{BLOCK, Packed, Scale, WeightFormat, block};

/// Where the parts of a block of 32 codes stand.
#[derive(Clone, Copy)]
struct Layout {
    ty: GgmlType,
    bits: u32,
    scale: Scale,
}

const LAYOUTS: [Layout; 5] = [
    layout(GgmlType::Q4_0, 4, Scale::Symmetric),
    layout(GgmlType::Q4_1, 4, Scale::Offset),
    layout(GgmlType::Q5_0, 5, Scale::Symmetric),
    layout(GgmlType::Q5_1, 5, Scale::Offset),
    layout(GgmlType::Q8_0, 8, Scale::Symmetric),
];

const fn layout(ty: GgmlType, bits: u32, scale: Scale) -> Layout {
    let layout = Layout { ty, bits, scale };
    assert!(ty.block_elements() == BLOCK);
    assert!(ty.block_bytes() == layout.header() + BLOCK * bits as usize / 8);
    layout
}

impl Layout {
    /// Bytes before the codes: f16 scale, f16 offset.
    const fn header(self) -> usize {
        match self.scale {
            Scale::Offset => 4,
            _ => 2,
        }
    }
}

/// A tensor's blocks as a matrix, in the format that holds them exactly; K types become f16. `None` without a decoder.
pub fn unpack(ty: GgmlType, bytes: &[u8], rows: usize, columns: usize) -> Option<Packed> {
    assert_eq!(
        Some(bytes.len() as u64),
        ty.bytes_of(&[rows, columns]),
        "a tensor has as many bytes as its shape and type make"
    );
    match ty {
        GgmlType::F32 => return Some(words_32bit(bytes, rows, columns)),
        GgmlType::F16 => {
            let format = WeightFormat::f16();
            return Some(Packed::from_16bit(format, bytes, rows, columns));
        }
        GgmlType::Bf16 => {
            let format = WeightFormat::bf16();
            return Some(Packed::from_16bit(format, bytes, rows, columns));
        }
        _ => {}
    }
    if let Some(decode) = k_quants::decoder(ty) {
        return Some(unpack_k(ty, decode, bytes, rows, columns));
    }
    let layout = LAYOUTS.into_iter().find(|layout| layout.ty == ty)?;
    let format = WeightFormat::affine(layout.bits, layout.scale, BLOCK as u32)?;
    Some(unpack_affine(layout, format, bytes, rows, columns))
}

/// The format that [`unpack`] gives for a type. `None` without a decoder.
pub fn weight_format(ty: GgmlType) -> Option<WeightFormat> {
    match ty {
        GgmlType::F32 => Some(WeightFormat::f32()),
        GgmlType::F16 => Some(WeightFormat::f16()),
        GgmlType::Bf16 => Some(WeightFormat::bf16()),
        _ if k_quants::decoder(ty).is_some() => Some(WeightFormat::f16()),
        _ => {
            let layout = LAYOUTS.into_iter().find(|layout| layout.ty == ty)?;
            WeightFormat::affine(layout.bits, layout.scale, BLOCK as u32)
        }
    }
}

/// The type that holds a format exactly in rows of `columns`: what [`pack`] writes, zeros that a pattern leaves out included.
/// `None` if there is none.
pub fn holds(format: WeightFormat, columns: usize) -> Option<GgmlType> {
    let format = format.dense();
    match format.ty.name {
        "f32" => return Some(GgmlType::F32),
        "f16" => return Some(GgmlType::F16),
        "bf16" => return Some(GgmlType::Bf16),
        _ => {}
    }
    let same = |l: &Layout| l.bits == format.ty.bits && l.scale == format.ty.scale;
    let layout = LAYOUTS.into_iter().find(same)?;
    let whole_blocks = columns > 0 && columns.is_multiple_of(BLOCK);
    (whole_blocks && format.group_size as usize == BLOCK).then_some(layout.ty)
}

/// A matrix as a tensor's blocks, for the formats that GGUF holds exactly; `None` for others.
pub fn pack(packed: &Packed) -> Option<(GgmlType, Vec<u8>)> {
    if packed.format.ty.is_sparse() {
        return pack(&packed.dense());
    }
    let (format, columns) = (packed.format, packed.columns);
    let plain = match format.ty.name {
        "f32" => Some((GgmlType::F32, 4)),
        "f16" => Some((GgmlType::F16, 2)),
        "bf16" => Some((GgmlType::Bf16, 2)),
        _ => None,
    };
    if let Some((ty, size)) = plain {
        return Some((ty, pack_plain(packed, size)));
    }
    let layout =
        LAYOUTS.into_iter().find(|l| l.bits == format.ty.bits && l.scale == format.ty.scale)?;
    holds(format, columns)?;
    let block_bytes = layout.ty.block_bytes();
    let row_bytes = columns / BLOCK * block_bytes;
    let mut bytes = vec![0; packed.rows * row_bytes];
    bytes.par_chunks_exact_mut(row_bytes).enumerate().for_each(|(row, line)| {
        let words = format.code_words_per_row(columns);
        let codes = &packed.codes[row * words..(row + 1) * words];
        let blocks = line.chunks_exact_mut(block_bytes);
        for (group, (block, words)) in
            blocks.zip(codes.chunks_exact(layout.bits as usize)).enumerate()
        {
            let (scale, second) = packed.group(row, group);
            block[..2].copy_from_slice(&scale.to_le_bytes());
            if layout.scale == Scale::Offset {
                block[2..4].copy_from_slice(&second.to_le_bytes());
            }
            let codes = block::unpack(layout.bits as usize, words);
            write_codes(layout.bits, &codes, &mut block[layout.header()..]);
        }
    });
    Some((layout.ty, bytes))
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

fn unpack_affine(
    layout: Layout,
    format: WeightFormat,
    bytes: &[u8],
    rows: usize,
    columns: usize,
) -> Packed {
    let mut packed = Packed::zeros(format, rows, columns);
    let block_bytes = layout.ty.block_bytes();
    let lines = bytes.par_chunks_exact((columns / BLOCK * block_bytes).max(1));
    let codes = packed.codes.par_chunks_exact_mut(format.code_words_per_row(columns).max(1));
    let scales = packed.scales.par_chunks_exact_mut(format.scale_words_per_row(columns).max(1));
    lines.zip(codes).zip(scales).for_each(|((line, codes), scales)| {
        let words = codes.chunks_exact_mut(layout.bits as usize);
        for (group, (block, words)) in line.chunks_exact(block_bytes).zip(words).enumerate() {
            let half = |at: usize| u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
            if layout.scale == Scale::Offset {
                scales[group] = half(0) | half(2) << 16;
            } else {
                scales[group / 2] |= half(0) << (16 * (group % 2));
            }
            let codes = read_codes(layout.bits, &block[layout.header()..]);
            block::pack(layout.bits as usize, &codes, words);
        }
    });
    packed
}

fn unpack_k(
    ty: GgmlType,
    decode: k_quants::Decode,
    bytes: &[u8],
    rows: usize,
    columns: usize,
) -> Packed {
    let mut packed = Packed::zeros(WeightFormat::f16(), rows, columns);
    let words = packed.format.code_words_per_row(columns);
    let line_bytes = columns / k_quants::SUPER_BLOCK * ty.block_bytes();
    bytes
        .par_chunks_exact(line_bytes.max(1))
        .zip(packed.codes.par_chunks_exact_mut(words.max(1)))
        .for_each(|(line, words)| {
            let mut values = [0.0f32; k_quants::SUPER_BLOCK];
            let mut rounded = [half::f16::ZERO; k_quants::SUPER_BLOCK];
            let targets = words.chunks_exact_mut(k_quants::SUPER_BLOCK / 2);
            for (block, target) in line.chunks_exact(ty.block_bytes()).zip(targets) {
                decode(block, &mut values);
                rounded.convert_from_f32_slice(&values);
                for (word, pair) in target.iter_mut().zip(rounded.chunks_exact(2)) {
                    *word = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
                }
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

/// The codes of a block, without its header. Signed bytes become unsigned by flipping the top bit: `q + 128`.
fn read_codes(bits: u32, bytes: &[u8]) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    if bits == 8 {
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = byte ^ 0x80;
        }
        return codes;
    }
    let (fifth, nibbles) = bytes.split_at(bytes.len() - BLOCK / 2);
    for (j, byte) in nibbles.iter().enumerate() {
        codes[j] = byte & 15;
        codes[j + BLOCK / 2] = byte >> 4;
    }
    if let Some(fifth) = fifth.first_chunk::<4>() {
        let fifth = u32::from_le_bytes(*fifth);
        for (j, code) in codes.iter_mut().enumerate() {
            *code |= ((fifth >> j & 1) as u8) << 4;
        }
    }
    codes
}

/// The reverse of [`read_codes`], into zero bytes.
fn write_codes(bits: u32, codes: &[u8; BLOCK], bytes: &mut [u8]) {
    if bits == 8 {
        for (byte, code) in bytes.iter_mut().zip(codes) {
            *byte = code ^ 0x80;
        }
        return;
    }
    let (fifth, nibbles) = bytes.split_at_mut(bytes.len() - BLOCK / 2);
    for (j, byte) in nibbles.iter_mut().enumerate() {
        *byte = codes[j] & 15 | codes[j + BLOCK / 2] << 4;
    }
    for (j, code) in codes.iter().enumerate() {
        if let Some(byte) = fifth.get_mut(j / 8) {
            *byte |= (code >> 4) << (j % 8);
        }
    }
}
