//! GGUF's types of 32 codes with an f16 scale: symmetric ones (`_0`), and those with an f16 offset (`_1`).
//!
//! A block is the scale, then the offset, then 4 bytes of fifth bits (types Q5), then the low nibbles. Byte `j` of the nibbles
//! holds element `j` (low) and element `j + 16` (high); bit `j` of the fifth bits belongs to element `j`. Q8_0 has signed
//! bytes instead.

use super::GgmlType;
use super::blocks::{Block, BlockType, half_at, put_half, read_codes, write_codes};
use crate::tensor::BLOCK;

/// The types of the family.
pub(super) const TYPES: [BlockType; 5] = [
    BlockType { ty: GgmlType::Q4_0, name: "int4", group: 32, unpack: unpack_q4_0, pack: pack_q4_0 },
    BlockType {
        ty: GgmlType::Q4_1,
        name: "uint4m",
        group: 32,
        unpack: unpack_q4_1,
        pack: pack_q4_1,
    },
    BlockType { ty: GgmlType::Q5_0, name: "int5", group: 32, unpack: unpack_q5_0, pack: pack_q5_0 },
    BlockType {
        ty: GgmlType::Q5_1,
        name: "uint5m",
        group: 32,
        unpack: unpack_q5_1,
        pack: pack_q5_1,
    },
    BlockType { ty: GgmlType::Q8_0, name: "int8", group: 32, unpack: unpack_q8_0, pack: pack_q8_0 },
];

const _: () = assert!(GgmlType::Q4_0.block_bytes() == 2 + 16);
const _: () = assert!(GgmlType::Q4_1.block_bytes() == 2 + 2 + 16);
const _: () = assert!(GgmlType::Q5_0.block_bytes() == 2 + 4 + 16);
const _: () = assert!(GgmlType::Q5_1.block_bytes() == 2 + 2 + 4 + 16);
const _: () = assert!(GgmlType::Q8_0.block_bytes() == 2 + 32);

/// Four bits of element `e`: 32 elements share 16 bytes, the first 16 in the low nibbles.
pub(super) fn halves_of_32(e: usize) -> (usize, u32) {
    (e / 32 * 16 + e % 16, (e % 32 / 16 * 4) as u32)
}

/// One bit of element `e`, in order.
fn bits_in_order(e: usize) -> (usize, u32) {
    (e / 8, (e % 8) as u32)
}

fn unpack_q4_0(bytes: &[u8], block: &mut Block) {
    block.groups[0] = (half_at(bytes, 0), 0);
    read_codes(&bytes[2..], (4, 0), halves_of_32, &mut block.codes[..BLOCK]);
}

fn pack_q4_0(block: &Block, bytes: &mut [u8]) {
    put_half(bytes, 0, block.groups[0].0);
    write_codes(&block.codes[..BLOCK], (4, 0), halves_of_32, &mut bytes[2..]);
}

fn unpack_q4_1(bytes: &[u8], block: &mut Block) {
    block.groups[0] = (half_at(bytes, 0), half_at(bytes, 2));
    read_codes(&bytes[4..], (4, 0), halves_of_32, &mut block.codes[..BLOCK]);
}

fn pack_q4_1(block: &Block, bytes: &mut [u8]) {
    put_half(bytes, 0, block.groups[0].0);
    put_half(bytes, 2, block.groups[0].1);
    write_codes(&block.codes[..BLOCK], (4, 0), halves_of_32, &mut bytes[4..]);
}

fn unpack_q5_0(bytes: &[u8], block: &mut Block) {
    block.groups[0] = (half_at(bytes, 0), 0);
    read_codes(&bytes[2..6], (1, 4), bits_in_order, &mut block.codes[..BLOCK]);
    read_codes(&bytes[6..], (4, 0), halves_of_32, &mut block.codes[..BLOCK]);
}

fn pack_q5_0(block: &Block, bytes: &mut [u8]) {
    put_half(bytes, 0, block.groups[0].0);
    write_codes(&block.codes[..BLOCK], (1, 4), bits_in_order, &mut bytes[2..6]);
    write_codes(&block.codes[..BLOCK], (4, 0), halves_of_32, &mut bytes[6..]);
}

fn unpack_q5_1(bytes: &[u8], block: &mut Block) {
    block.groups[0] = (half_at(bytes, 0), half_at(bytes, 2));
    read_codes(&bytes[4..8], (1, 4), bits_in_order, &mut block.codes[..BLOCK]);
    read_codes(&bytes[8..], (4, 0), halves_of_32, &mut block.codes[..BLOCK]);
}

fn pack_q5_1(block: &Block, bytes: &mut [u8]) {
    put_half(bytes, 0, block.groups[0].0);
    put_half(bytes, 2, block.groups[0].1);
    write_codes(&block.codes[..BLOCK], (1, 4), bits_in_order, &mut bytes[4..8]);
    write_codes(&block.codes[..BLOCK], (4, 0), halves_of_32, &mut bytes[8..]);
}

/// Signed bytes become unsigned by flipping the top bit: `q + 128`.
fn unpack_q8_0(bytes: &[u8], block: &mut Block) {
    block.groups[0] = (half_at(bytes, 0), 0);
    for (code, byte) in block.codes.iter_mut().zip(&bytes[2..]) {
        *code = byte ^ 0x80;
    }
}

fn pack_q8_0(block: &Block, bytes: &mut [u8]) {
    put_half(bytes, 0, block.groups[0].0);
    for (code, byte) in block.codes.iter().zip(&mut bytes[2..]) {
        *byte = code ^ 0x80;
    }
}
