//! GGUF's types of four bits with a table of sixteen values: IQ4_NL in blocks of 32, IQ4_XS in super-blocks of 256.

use super::GgmlType;
use super::affine::halves_of_32;
use super::blocks::{Block, BlockType, half_at, put_half, read_codes, write_codes};

/// The types of the family.
pub(super) const TYPES: [BlockType; 2] = [
    BlockType { ty: GgmlType::Iq4Nl, name: "iq4_nl", group: 32, unpack: unpack_nl, pack: pack_nl },
    BlockType { ty: GgmlType::Iq4Xs, name: "iq4_xs", group: 32, unpack: unpack_xs, pack: pack_xs },
];

const _: () = assert!(GgmlType::Iq4Nl.block_bytes() == 2 + 16);
const _: () = assert!(GgmlType::Iq4Xs.block_bytes() == 2 + 2 + 4 + 128);

/// 32 less than six bits, as a signed integer of a group.
pub(super) fn less_32(six_bits: u8) -> u16 {
    u16::from(six_bits).wrapping_sub(32)
}

/// The reverse of [`less_32`].
pub(super) fn and_32(scale: u16) -> u8 {
    scale.wrapping_add(32) as u8 & 63
}

/// f16 scale, then nibbles: `w = d * value(code)`.
fn unpack_nl(bytes: &[u8], block: &mut Block) {
    block.groups[0] = (half_at(bytes, 0), 0);
    read_codes(&bytes[2..], (4, 0), halves_of_32, &mut block.codes[..32]);
}

fn pack_nl(block: &Block, bytes: &mut [u8]) {
    put_half(bytes, 0, block.groups[0].0);
    write_codes(&block.codes[..32], (4, 0), halves_of_32, &mut bytes[2..]);
}

/// 8 sub-blocks of 32: f16 scale `d`, the high two bits of the sub-blocks' scales in two bytes, the low four in nibbles, then
/// codes. `w = d * (scale - 32) * value(code)`.
fn unpack_xs(bytes: &[u8], block: &mut Block) {
    let high = half_at(bytes, 2);
    for (sub, group) in block.groups[..8].iter_mut().enumerate() {
        let low = bytes[4 + sub / 2] >> (sub % 2 * 4) & 15;
        *group = (less_32(low | ((high >> (2 * sub) & 3) << 4) as u8), 0);
    }
    read_codes(&bytes[8..], (4, 0), halves_of_32, &mut block.codes);
    block.scales = (half_at(bytes, 0), 0);
}

fn pack_xs(block: &Block, bytes: &mut [u8]) {
    let mut high = 0;
    for (sub, (scale, _)) in block.groups[..8].iter().enumerate() {
        let scale = and_32(*scale);
        bytes[4 + sub / 2] |= (scale & 15) << (sub % 2 * 4);
        high |= u16::from(scale >> 4) << (2 * sub);
    }
    put_half(bytes, 0, block.scales.0);
    put_half(bytes, 2, high);
    write_codes(&block.codes, (4, 0), halves_of_32, &mut bytes[8..]);
}
