//! How 32 codes of up to 8 bits stand in their words.
//!
//! A code is cut into parts of 8, 4, 2 or 1 bits, the lowest bits first: 3 bits are 2 + 1, 7 are 4 + 2 + 1. A part of `p`
//! bits fills `p` words, so a block of `b`-bit codes is `b` words and nothing is lost to padding. Within a part, the four
//! bytes of a word hold neighbouring codes: code `4q + i` stands in byte `i`, `p * (q mod 8/p)` bits up, of word
//! `q / (8/p)`. So one shift and one mask take four codes out as bytes, which is what integer dot products multiply
//! (`dot4I8Packed`), and all parts of four codes join with shifts and ors. The shaders' side is `code_bytes`.

use super::BLOCK;

/// The parts of a code of `bits` bits, as (bits of the part, bits below it). As a part fills as many words as it has bits,
/// the bits below it are its first word as well.
fn parts(bits: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    let held = [8, 4, 2, 1].into_iter().filter(move |part| bits & part != 0);
    held.map(move |part| {
        let first = start;
        start += part;
        (part, first)
    })
}

/// Every byte of a word with its lowest `part` bits set.
const fn mask(part: usize) -> u32 {
    0x0101_0101 * ((1 << part) - 1)
}

/// The code at a place of a block.
pub(super) fn get(bits: usize, words: &[u32], place: usize) -> u32 {
    let (quad, byte) = (place / 4, place % 4);
    let part_of = |(part, low): (usize, usize)| {
        let per_word = 8 / part;
        let shift = 8 * byte + part * (quad % per_word);
        (words[low + quad / per_word] >> shift & ((1 << part) - 1)) << low
    };
    parts(bits).map(part_of).fold(0, |code, part| code | part)
}

/// Stores a code at a place that holds zero bits.
pub(super) fn set(bits: usize, words: &mut [u32], place: usize, code: u32) {
    let (quad, byte) = (place / 4, place % 4);
    for (part, low) in parts(bits) {
        let per_word = 8 / part;
        let shift = 8 * byte + part * (quad % per_word);
        words[low + quad / per_word] |= (code >> low & ((1 << part) - 1)) << shift;
    }
}

/// All codes of a block of `bits` words.
#[inline(always)]
pub fn unpack(bits: usize, words: &[u32]) -> [u8; BLOCK] {
    if bits == 8 {
        // A byte each, in order.
        return std::array::from_fn(|code| (words[code / 4] >> (8 * (code % 4))) as u8);
    }
    let mut codes = [0; BLOCK];
    for (part, low) in parts(bits) {
        let per_word = 8 / part;
        for (quad, target) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let four = words[low + quad / per_word] >> (part * (quad % per_word)) & mask(part);
            *target = (u32::from_le_bytes(*target) | four << low).to_le_bytes();
        }
    }
    codes
}

/// The reverse of [`unpack`]: every word is written.
pub fn pack(bits: usize, codes: &[u8; BLOCK], words: &mut [u32]) {
    words[..bits].fill(0);
    for (part, low) in parts(bits) {
        let per_word = 8 / part;
        for (quad, four) in codes.as_chunks::<4>().0.iter().enumerate() {
            let four = u32::from_le_bytes(*four) >> low & mask(part);
            words[low + quad / per_word] |= four << (part * (quad % per_word));
        }
    }
}
