//! GGUF's types of one to three bits with codebooks of vectors: read only, as f32, which holds every value exactly.
//!
//! A code names four or eight numbers at once, an entry of a grid; signs stand apart, or in a grid of -1, 0 and 1 that a delta
//! shifts. An entry is a word of 16 bits here, an index of its level for each number, the first lowest.

use half::f16;

use super::GgmlType;
use super::blocks::half_at;
use crate::tensor::SUPER_BLOCK;

/// Decodes one block of 256: its bytes, and places for the values.
pub(super) type Decode = fn(&[u8], &mut [f32]);

/// The decoder of a type, if it is of the family.
pub(super) fn decoder(ty: GgmlType) -> Option<Decode> {
    const TYPES: [(GgmlType, Decode); 7] = [
        (GgmlType::Iq1S, iq1_s),
        (GgmlType::Iq1M, iq1_m),
        (GgmlType::Iq2Xxs, iq2_xxs),
        (GgmlType::Iq2Xs, iq2_xs),
        (GgmlType::Iq2S, iq2_s),
        (GgmlType::Iq3Xxs, iq3_xxs),
        (GgmlType::Iq3S, iq3_s),
    ];
    TYPES.into_iter().find(|(known, _)| *known == ty).map(|(_, decode)| decode)
}

const _: () = assert!(GgmlType::Iq1S.block_bytes() == 2 + 32 + 16);
const _: () = assert!(GgmlType::Iq1M.block_bytes() == 32 + 16 + 8);
const _: () = assert!(GgmlType::Iq2Xxs.block_bytes() == 2 + 64);
const _: () = assert!(GgmlType::Iq2Xs.block_bytes() == 2 + 64 + 8);
const _: () = assert!(GgmlType::Iq2S.block_bytes() == 2 + 32 + 32 + 8 + 8);
const _: () = assert!(GgmlType::Iq3Xxs.block_bytes() == 2 + 64 + 32);
const _: () = assert!(GgmlType::Iq3S.block_bytes() == 2 + 64 + 8 + 32 + 4);

/// A codebook of vectors.
struct Grid<const LEVELS: usize> {
    /// 16-bit words, little-endian.
    words: &'static [u8],
    levels: [f32; LEVELS],
}

macro_rules! grid {
    ($file:literal, $levels:expr) => {
        Grid { words: include_bytes!(concat!("../../../assets/iq-grids/", $file)), levels: $levels }
    };
}

const TWO_BITS: [f32; 3] = [8.0, 25.0, 43.0];
const IQ1: Grid<3> = grid!("iq1_s.bin", [-1.0, 0.0, 1.0]);
const IQ2_XXS: Grid<3> = grid!("iq2_xxs.bin", TWO_BITS);
const IQ2_XS: Grid<3> = grid!("iq2_xs.bin", TWO_BITS);
const IQ2_S: Grid<3> = grid!("iq2_s.bin", TWO_BITS);
const IQ3_XXS: Grid<8> = grid!("iq3_xxs.bin", [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0]);
const IQ3_S: Grid<8> = grid!("iq3_s.bin", [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0]);

impl<const LEVELS: usize> Grid<LEVELS> {
    /// Number `place` of an entry: of eight in two bits each, or of four in four bits each.
    fn value(&self, entry: usize, place: usize) -> f32 {
        let bits = if LEVELS == 3 { 2 } else { 4 };
        let word = half_at(self.words, 2 * entry);
        self.levels[usize::from(word >> (bits * place) & ((1 << bits) - 1))]
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_bits(half_at(bytes, at)).to_f32()
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(half_at(bytes, at)) | u32::from(half_at(bytes, at + 2)) << 16
}

/// Nibble `index` of some bytes, as a number.
fn nibble(bytes: &[u8], index: usize) -> f32 {
    f32::from(bytes[index / 2] >> (index % 2 * 4) & 15)
}

/// Eight signs of which seven are stored: the last makes their number even.
fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// -1 where a bit is set.
fn sign(bits: u8, place: usize) -> f32 {
    if bits >> place & 1 == 1 { -1.0 } else { 1.0 }
}

/// Eight numbers of a grid of 2 bits, with signs.
fn put_eight(out: &mut [f32], scale: f32, grid: &Grid<3>, entry: usize, signs: u8) {
    for (place, value) in out.iter_mut().enumerate() {
        *value = scale * grid.value(entry, place) * sign(signs, place);
    }
}

/// `w = d * (0.5 + scale) / 4 * grid`: for 32 elements four bytes of entries, then four times seven bits of signs and the scale.
fn iq2_xxs(bytes: &[u8], out: &mut [f32]) {
    let d = f16_at(bytes, 0);
    for (n, out) in out.chunks_exact_mut(8).enumerate() {
        let at = 2 + n / 4 * 8;
        let word = word_at(bytes, at + 4);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.25;
        let signs = even_signs(word >> (7 * (n % 4)));
        put_eight(out, scale, &IQ2_XXS, bytes[at + n % 4].into(), signs);
    }
}

/// The same with nine bits of entries and seven of signs in two bytes, and scales of 16 elements in nibbles.
fn iq2_xs(bytes: &[u8], out: &mut [f32]) {
    let d = f16_at(bytes, 0);
    for (n, out) in out.chunks_exact_mut(8).enumerate() {
        let code = half_at(bytes, 2 + 2 * n);
        let scale = d * (0.5 + nibble(&bytes[66..74], n / 2)) * 0.25;
        put_eight(out, scale, &IQ2_XS, usize::from(code & 511), even_signs((code >> 9).into()));
    }
}

/// The same with ten bits of entries, the high two apart, and all eight signs.
fn iq2_s(bytes: &[u8], out: &mut [f32]) {
    let d = f16_at(bytes, 0);
    for (n, out) in out.chunks_exact_mut(8).enumerate() {
        let high = usize::from(bytes[66 + n / 4] >> (n % 4 * 2) & 3);
        let scale = d * (0.5 + nibble(&bytes[74..82], n / 2)) * 0.25;
        put_eight(out, scale, &IQ2_S, usize::from(bytes[2 + n]) | high << 8, bytes[34 + n]);
    }
}

/// `w = d * (0.5 + scale) / 2 * grid`: bytes of entries of four, then for 32 elements signs and scale as in IQ2_XXS.
fn iq3_xxs(bytes: &[u8], out: &mut [f32]) {
    let d = f16_at(bytes, 0);
    for (e, value) in out.iter_mut().enumerate() {
        let word = word_at(bytes, 66 + e / 32 * 4);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
        let signs = even_signs(word >> (7 * (e % 32 / 8)));
        *value = scale * IQ3_XXS.value(bytes[2 + e / 4].into(), e % 4) * sign(signs, e % 8);
    }
}

/// `w = d * (1 + 2 * scale) * grid`: nine bits of entries, the highest apart, all signs, scales of 32 elements in nibbles.
fn iq3_s(bytes: &[u8], out: &mut [f32]) {
    let d = f16_at(bytes, 0);
    for (e, value) in out.iter_mut().enumerate() {
        let n = e / 4;
        let entry = usize::from(bytes[2 + n]) | usize::from(bytes[66 + n / 8] >> (n % 8) & 1) << 8;
        let scale = d * (1.0 + 2.0 * nibble(&bytes[106..110], e / 32));
        *value = scale * IQ3_S.value(entry, e % 4) * sign(bytes[74 + e / 8], e % 8);
    }
}

/// What the numbers of IQ1's grid are shifted by.
const DELTA: f32 = 0.125;

/// `w = d * (2 * scale + 1) * (grid + delta)`: for 32 elements four times three high bits of entries, three of the scale and the
/// sign of the delta.
fn iq1_s(bytes: &[u8], out: &mut [f32]) {
    let d = f16_at(bytes, 0);
    for (n, out) in out.chunks_exact_mut(8).enumerate() {
        let high = half_at(bytes, 34 + n / 4 * 2);
        let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
        let delta = if high & 0x8000 == 0 { DELTA } else { -DELTA };
        let entry = usize::from(bytes[2 + n]) | usize::from(high >> (3 * (n % 4)) & 7) << 8;
        for (place, value) in out.iter_mut().enumerate() {
            *value = scale * (IQ1.value(entry, place) + delta);
        }
    }
}

/// The same with scales of 16 elements and deltas of eight; `d` stands in the high nibbles of the scales' four words.
fn iq1_m(bytes: &[u8], out: &mut [f32]) {
    let scales: [u16; 4] = std::array::from_fn(|word| half_at(bytes, 48 + 2 * word));
    let bits = scales.iter().enumerate().map(|(word, scales)| scales >> 12 << (4 * word));
    let d = f16::from_bits(bits.fold(0, |all, bits| all | bits)).to_f32();
    for (n, out) in out.chunks_exact_mut(8).enumerate() {
        let high = bytes[32 + n / 2] >> (n % 2 * 4) & 15;
        let scale = d * f32::from(2 * (scales[n / 8] >> (n / 2 % 4 * 3) & 7) + 1);
        let delta = if high & 8 == 0 { DELTA } else { -DELTA };
        let entry = usize::from(bytes[n]) | usize::from(high & 7) << 8;
        for (place, value) in out.iter_mut().enumerate() {
            *value = scale * (IQ1.value(entry, place) + delta);
        }
    }
}

/// The blocks of a row as f32 words.
pub(super) fn decoded_row(ty: GgmlType, decode: Decode, bytes: &[u8], words: &mut [u32]) {
    let mut values = [0.0f32; SUPER_BLOCK];
    let targets = words.chunks_exact_mut(SUPER_BLOCK);
    for (block, words) in bytes.chunks_exact(ty.block_bytes()).zip(targets) {
        decode(block, &mut values);
        words.iter_mut().zip(values).for_each(|(word, value)| *word = value.to_bits());
    }
}
