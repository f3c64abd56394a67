//! GGUF's K types: super-blocks of 256 elements, whose sub-blocks have scales of 4, 6 or 8 bits.

use super::blocks::{Block, BlockType, half_at, put_half, read_codes, write_codes};
use super::{GgmlType, iq4};

/// The types of the family.
pub(super) const TYPES: [BlockType; 5] = [
    BlockType { ty: GgmlType::Q2K, name: "q2_k", group: 16, unpack: unpack_q2, pack: pack_q2 },
    BlockType { ty: GgmlType::Q3K, name: "q3_k", group: 16, unpack: unpack_q3, pack: pack_q3 },
    BlockType { ty: GgmlType::Q4K, name: "q4_k", group: 32, unpack: unpack_q4, pack: pack_q4 },
    BlockType { ty: GgmlType::Q5K, name: "q5_k", group: 32, unpack: unpack_q5, pack: pack_q5 },
    BlockType { ty: GgmlType::Q6K, name: "q6_k", group: 16, unpack: unpack_q6, pack: pack_q6 },
];

const _: () = assert!(GgmlType::Q2K.block_bytes() == 16 + 64 + 2 + 2);
const _: () = assert!(GgmlType::Q3K.block_bytes() == 32 + 64 + 12 + 2);
const _: () = assert!(GgmlType::Q4K.block_bytes() == 2 + 2 + 12 + 128);
const _: () = assert!(GgmlType::Q5K.block_bytes() == 2 + 2 + 12 + 32 + 128);
const _: () = assert!(GgmlType::Q6K.block_bytes() == 128 + 64 + 16 + 2);

/// Two bits of element `e`: 128 elements share 32 bytes, element `i` of them in byte `i % 32`, bits from `i / 32 * 2`.
pub(super) fn pairs(e: usize) -> (usize, u32) {
    (e / 128 * 32 + e % 32, (e % 128 / 32 * 2) as u32)
}

/// One bit of element `e`: 256 elements share 32 bytes, element `e` in byte `e % 32`, bit `e / 32`.
fn single_bits(e: usize) -> (usize, u32) {
    (e % 32, (e / 32) as u32)
}

/// Four bits of element `e`: 64 elements share 32 bytes, the first 32 in the low nibbles.
fn nibbles(e: usize) -> (usize, u32) {
    (e / 64 * 32 + e % 32, (e % 64 / 32 * 4) as u32)
}

/// The same in Q6_K: 128 elements share 64 bytes, the first 64 in the low nibbles.
fn wide_nibbles(e: usize) -> (usize, u32) {
    (e / 128 * 64 + e % 64, (e % 128 / 64 * 4) as u32)
}

/// 16 sub-blocks of 16. `w = d * scale * q - dmin * minimum`; a byte holds scale (low nibble) and minimum.
fn unpack_q2(bytes: &[u8], block: &mut Block) {
    for (group, byte) in block.groups.iter_mut().zip(&bytes[..16]) {
        *group = (u16::from(byte & 15), u16::from(byte >> 4));
    }
    read_codes(&bytes[16..80], (2, 0), pairs, &mut block.codes);
    block.scales = (half_at(bytes, 80), half_at(bytes, 82));
}

fn pack_q2(block: &Block, bytes: &mut [u8]) {
    for ((scale, minimum), byte) in block.groups.iter().zip(&mut bytes[..16]) {
        *byte = (scale & 15 | minimum << 4) as u8;
    }
    write_codes(&block.codes, (2, 0), pairs, &mut bytes[16..80]);
    put_half(bytes, 80, block.scales.0);
    put_half(bytes, 82, block.scales.1);
}

/// 16 sub-blocks of 16. `w = d * (scale - 32) * (q - 4)`, `q` of two bits and a third in the mask. Scales have 6 bits: the low
/// four in nibbles of bytes 0 to 7, the high two in bytes 8 to 11.
fn unpack_q3(bytes: &[u8], block: &mut Block) {
    let scales = &bytes[96..108];
    for (sub, group) in block.groups.iter_mut().enumerate() {
        let low = scales[sub % 8] >> (sub / 8 * 4) & 15;
        let high = scales[8 + sub % 4] >> (sub / 4 * 2) & 3;
        *group = (iq4::less_32(low | high << 4), 0);
    }
    read_codes(&bytes[32..96], (2, 0), pairs, &mut block.codes);
    read_codes(&bytes[..32], (1, 2), single_bits, &mut block.codes);
    block.scales = (half_at(bytes, 108), 0);
}

fn pack_q3(block: &Block, bytes: &mut [u8]) {
    for (sub, (scale, _)) in block.groups.iter().enumerate() {
        let scale = iq4::and_32(*scale);
        bytes[96 + sub % 8] |= (scale & 15) << (sub / 8 * 4);
        bytes[104 + sub % 4] |= scale >> 4 << (sub / 4 * 2);
    }
    write_codes(&block.codes, (2, 0), pairs, &mut bytes[32..96]);
    write_codes(&block.codes, (1, 2), single_bits, &mut bytes[..32]);
    put_half(bytes, 108, block.scales.0);
}

/// Scale and minimum, 6 bits each, of sub-block `sub` (of 8) from the 12 bytes of Q4_K and Q5_K.
fn scale_and_minimum(bytes: &[u8], sub: usize) -> (u16, u16) {
    let (scale, minimum) = if sub < 4 {
        (bytes[sub] & 63, bytes[sub + 4] & 63)
    } else {
        // The last four: low nibbles in bytes 8 to 11, high two bits above the 6 bits of the first four.
        let shared = bytes[sub + 4];
        (shared & 15 | bytes[sub - 4] >> 6 << 4, shared >> 4 | bytes[sub] >> 6 << 4)
    };
    (scale.into(), minimum.into())
}

/// The reverse of [`scale_and_minimum`], into bytes that hold only what earlier sub-blocks have put there.
fn put_scale_and_minimum(bytes: &mut [u8], sub: usize, (scale, minimum): (u16, u16)) {
    let (scale, minimum) = (scale as u8 & 63, minimum as u8 & 63);
    if sub < 4 {
        bytes[sub] |= scale;
        bytes[sub + 4] |= minimum;
    } else {
        bytes[sub + 4] |= scale & 15 | minimum << 4;
        bytes[sub - 4] |= scale >> 4 << 6;
        bytes[sub] |= minimum >> 4 << 6;
    }
}

/// What stands at the start of Q4_K and Q5_K.
fn unpack_head(bytes: &[u8], block: &mut Block) {
    block.scales = (half_at(bytes, 0), half_at(bytes, 2));
    for (sub, group) in block.groups[..8].iter_mut().enumerate() {
        *group = scale_and_minimum(&bytes[4..16], sub);
    }
}

fn pack_head(block: &Block, bytes: &mut [u8]) {
    put_half(bytes, 0, block.scales.0);
    put_half(bytes, 2, block.scales.1);
    for (sub, group) in block.groups[..8].iter().enumerate() {
        put_scale_and_minimum(&mut bytes[4..16], sub, *group);
    }
}

/// 8 sub-blocks of 32. `w = d * scale * q - dmin * minimum`.
fn unpack_q4(bytes: &[u8], block: &mut Block) {
    unpack_head(bytes, block);
    read_codes(&bytes[16..], (4, 0), nibbles, &mut block.codes);
}

fn pack_q4(block: &Block, bytes: &mut [u8]) {
    pack_head(block, bytes);
    write_codes(&block.codes, (4, 0), nibbles, &mut bytes[16..]);
}

/// Q4_K with a fifth bit for each code.
fn unpack_q5(bytes: &[u8], block: &mut Block) {
    unpack_head(bytes, block);
    read_codes(&bytes[48..], (4, 0), nibbles, &mut block.codes);
    read_codes(&bytes[16..48], (1, 4), single_bits, &mut block.codes);
}

fn pack_q5(block: &Block, bytes: &mut [u8]) {
    pack_head(block, bytes);
    write_codes(&block.codes, (4, 0), nibbles, &mut bytes[48..]);
    write_codes(&block.codes, (1, 4), single_bits, &mut bytes[16..48]);
}

/// 16 sub-blocks of 16. `w = d * scale * (q - 32)`, scale a signed byte, `q` of 6 bits.
fn unpack_q6(bytes: &[u8], block: &mut Block) {
    read_codes(&bytes[..128], (4, 0), wide_nibbles, &mut block.codes);
    read_codes(&bytes[128..192], (2, 4), pairs, &mut block.codes);
    for (group, byte) in block.groups.iter_mut().zip(&bytes[192..208]) {
        *group = (i16::from(*byte as i8) as u16, 0);
    }
    block.scales = (half_at(bytes, 208), 0);
}

fn pack_q6(block: &Block, bytes: &mut [u8]) {
    write_codes(&block.codes, (4, 0), wide_nibbles, &mut bytes[..128]);
    write_codes(&block.codes, (2, 4), pairs, &mut bytes[128..192]);
    for ((scale, _), byte) in block.groups.iter().zip(&mut bytes[192..208]) {
        *byte = *scale as u8;
    }
    put_half(bytes, 208, block.scales.0);
}
