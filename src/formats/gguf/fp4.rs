//! GGUF's types of E2M1 floats: MXFP4 under a power of two for 32, NVFP4 under E4M3 scales of 16.
//!
//! llama.cpp has the floats' values doubled and the scales halved: the same products. A scale byte is read as it stands; of those
//! that no writer makes, 255 of MXFP4 and 0x7f of NVFP4, which llama.cpp takes for 2^127 and 0, stand for NaN.
//!
//! NVFP4's scale of the whole tensor stands in a tensor of its own, one f32 (`blk.0.ffn_up.scale` beside
//! `blk.0.ffn_up.weight`), or is 1: blocks are read with 1, and written without it.

use super::GgmlType;
use super::affine::halves_of_32;
use super::blocks::{Block, BlockType, read_codes, write_codes};

/// The types of the family.
pub(super) const TYPES: [BlockType; 2] = [
    BlockType { ty: GgmlType::Mxfp4, name: "mxfp4", group: 32, unpack: unpack_mx, pack: pack_mx },
    BlockType { ty: GgmlType::Nvfp4, name: "nvfp4", group: 16, unpack: unpack_nv, pack: pack_nv },
];

const _: () = assert!(GgmlType::Mxfp4.block_bytes() == 1 + 16);
const _: () = assert!(GgmlType::Nvfp4.block_bytes() == 4 + 32);

fn unpack_mx(bytes: &[u8], block: &mut Block) {
    block.groups[0] = (bytes[0].into(), 0);
    read_codes(&bytes[1..], (4, 0), halves_of_32, &mut block.codes[..32]);
}

fn pack_mx(block: &Block, bytes: &mut [u8]) {
    bytes[0] = block.groups[0].0 as u8;
    write_codes(&block.codes[..32], (4, 0), halves_of_32, &mut bytes[1..]);
}

/// Four bits of element `e`: 16 elements share 8 bytes, the first 8 in the low nibbles.
fn halves_of_16(e: usize) -> (usize, u32) {
    (e / 16 * 8 + e % 8, (e % 16 / 8 * 4) as u32)
}

fn unpack_nv(bytes: &[u8], block: &mut Block) {
    for (group, byte) in block.groups.iter_mut().zip(&bytes[..4]) {
        *group = ((*byte).into(), 0);
    }
    read_codes(&bytes[4..], (4, 0), halves_of_16, &mut block.codes[..64]);
}

fn pack_nv(block: &Block, bytes: &mut [u8]) {
    for ((scale, _), byte) in block.groups.iter().zip(&mut bytes[..4]) {
        *byte = *scale as u8;
    }
    write_codes(&block.codes[..64], (4, 0), halves_of_16, &mut bytes[4..]);
}
