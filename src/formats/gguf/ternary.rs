//! GGUF's types of -1, 0 and 1 under an f16 scale of 256: TQ2_0, two bits each, and TQ1_0, five to a byte.
//!
//! TQ2_0's fourth code is none that a writer makes. A byte of TQ1_0 is a number of five digits of base 3, the first the highest, times
//! 256 / 243, rounded up: so a digit is what overflows when the byte is multiplied by 3. Bytes that no number gives are read
//! as the digits they show, and written as those digits' own.

use super::GgmlType;
use super::blocks::{Block, BlockType, half_at, put_half, read_codes, write_codes};
use super::k_quants::pairs;

/// The types of the family. The first is what is written.
pub(super) const TYPES: [BlockType; 2] = [
    BlockType { ty: GgmlType::Tq2_0, name: "ternary", group: 256, unpack: unpack_2, pack: pack_2 },
    BlockType { ty: GgmlType::Tq1_0, name: "ternary", group: 256, unpack: unpack_1, pack: pack_1 },
];

const _: () = assert!(GgmlType::Tq2_0.block_bytes() == 64 + 2);
const _: () = assert!(GgmlType::Tq1_0.block_bytes() == 48 + 4 + 2);

fn unpack_2(bytes: &[u8], block: &mut Block) {
    read_codes(&bytes[..64], (2, 0), pairs, &mut block.codes);
    block.groups[0] = (half_at(bytes, 64), 0);
}

fn pack_2(block: &Block, bytes: &mut [u8]) {
    write_codes(&block.codes, (2, 0), pairs, &mut bytes[..64]);
    put_half(bytes, 64, block.groups[0].0);
}

/// Bytes whose digits stand together: so many digits of so many bytes, the first digits first.
const RUNS: [(usize, usize); 3] = [(32, 5), (16, 5), (4, 4)];

/// The byte and the digit of each element, in order.
fn digits() -> impl Iterator<Item = (usize, usize)> {
    let starts = [0, 32, 48];
    RUNS.into_iter().zip(starts).flat_map(|((bytes, digits), start)| {
        (0..digits).flat_map(move |digit| (0..bytes).map(move |byte| (start + byte, digit)))
    })
}

fn unpack_1(bytes: &[u8], block: &mut Block) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    for (code, (byte, digit)) in block.codes.iter_mut().zip(digits()) {
        let rest = bytes[byte].wrapping_mul(POWERS[digit]);
        *code = ((u16::from(rest) * 3) >> 8) as u8;
    }
    block.groups[0] = (half_at(bytes, 52), 0);
}

fn pack_1(block: &Block, bytes: &mut [u8]) {
    const POWERS: [u16; 5] = [81, 27, 9, 3, 1];
    let mut numbers = [0u16; 52];
    for (code, (byte, digit)) in block.codes.iter().zip(digits()) {
        // A code behind the table stands for 0, as 1 does.
        let code = if *code > 2 { 1 } else { *code };
        numbers[byte] += u16::from(code) * POWERS[digit];
    }
    for (byte, number) in bytes.iter_mut().zip(numbers) {
        *byte = (number * 256).div_ceil(243) as u8;
    }
    put_half(bytes, 52, block.groups[0].0);
}
