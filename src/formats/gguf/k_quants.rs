//! Decoding of GGUF's K types: super-blocks of 256 elements, whose sub-blocks have scales of 4, 6 or 8 bits.
//!
//! Values are computed in f32 in llama.cpp's order of operations, so they agree with it bit for bit. Encoding is
//! deliberately absent: Lopper does not write these types.

use half::f16;

use super::GgmlType;

/// Elements of a super-block.
pub(super) const SUPER_BLOCK: usize = 256;

/// Decodes one super-block: its bytes, and places for 256 values.
pub(super) type Decode = fn(&[u8], &mut [f32]);

const _: () = assert!(GgmlType::Q2K.block_bytes() == 16 + 64 + 2 + 2);
const _: () = assert!(GgmlType::Q3K.block_bytes() == 32 + 64 + 12 + 2);
const _: () = assert!(GgmlType::Q4K.block_bytes() == 2 + 2 + 12 + 128);
const _: () = assert!(GgmlType::Q5K.block_bytes() == 2 + 2 + 12 + 32 + 128);
const _: () = assert!(GgmlType::Q6K.block_bytes() == 128 + 64 + 16 + 2);

/// The decoder of a type, if it is a K type.
pub(super) fn decoder(ty: GgmlType) -> Option<Decode> {
    let decode: Decode = match ty {
        GgmlType::Q2K => q2_k,
        GgmlType::Q3K => q3_k,
        GgmlType::Q4K => q4_k,
        GgmlType::Q5K => q5_k,
        GgmlType::Q6K => q6_k,
        _ => return None,
    };
    Some(decode)
}

/// The f16 at a place, as f32.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Element `e` of codes of two bits: 128 elements share 32 bytes, element `i` of them in byte `i % 32`, bits from `i / 32 * 2`.
fn two_bits(bytes: &[u8], e: usize) -> u8 {
    bytes[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3
}

/// Element `e` of single bits: 256 elements share 32 bytes, element `e` in byte `e % 32`, bit `e / 32`.
fn one_bit(bytes: &[u8], e: usize) -> u8 {
    bytes[e % 32] >> (e / 32) & 1
}

/// Element `e` of codes of four bits: 64 elements share 32 bytes, the first 32 in the low nibbles.
fn four_bits(bytes: &[u8], e: usize) -> u8 {
    bytes[e / 64 * 32 + e % 32] >> (e % 64 / 32 * 4) & 15
}

/// 16 sub-blocks of 16. `w = d * scale * q - dmin * minimum`; a byte holds scale (low nibble) and minimum.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, d_min) = (half_at(block, 80), half_at(block, 82));
    for (sub, values) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[sub] & 15);
        let minimum = d_min * f32::from(scales[sub] >> 4);
        for (i, value) in values.iter_mut().enumerate() {
            *value = scale * f32::from(two_bits(codes, 16 * sub + i)) - minimum;
        }
    }
}

/// 16 sub-blocks of 16. `w = d * (scale - 32) * q`, `q` from -4 to 3: two bits, and 4 less where the mask's bit is clear.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (mask, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (sub, values) in out.chunks_exact_mut(16).enumerate() {
        // 6 bits: the low four in nibbles of bytes 0 to 7, the high two in bytes 8 to 11.
        let low = scales[sub % 8] >> (sub / 8 * 4) & 15;
        let high = scales[8 + sub % 4] >> (sub / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        for (i, value) in values.iter_mut().enumerate() {
            let e = 16 * sub + i;
            let code = two_bits(codes, e) + 4 * one_bit(mask, e);
            *value = scale * (f32::from(code) - 4.0);
        }
    }
}

/// Scale and minimum, 6 bits each, of sub-block `sub` (of 8) from the 12 bytes of Q4_K and Q5_K.
fn scale_and_minimum(bytes: &[u8], sub: usize) -> (f32, f32) {
    let (scale, minimum) = if sub < 4 {
        (bytes[sub] & 63, bytes[sub + 4] & 63)
    } else {
        // The last four: low nibbles in bytes 8 to 11, high two bits above the 6 bits of the first four.
        let shared = bytes[sub + 4];
        (shared & 15 | bytes[sub - 4] >> 6 << 4, shared >> 4 | bytes[sub] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

/// 8 sub-blocks of 32. `w = d * scale * q - dmin * minimum`.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, d_min, codes) = (half_at(block, 0), half_at(block, 2), &block[16..144]);
    for (sub, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], sub);
        let (scale, minimum) = (d * scale, d_min * minimum);
        for (i, value) in values.iter_mut().enumerate() {
            *value = scale * f32::from(four_bits(codes, 32 * sub + i)) - minimum;
        }
    }
}

/// Q4_K with a fifth bit for each code.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, d_min) = (half_at(block, 0), half_at(block, 2));
    let (fifth, codes) = (&block[16..48], &block[48..176]);
    for (sub, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], sub);
        let (scale, minimum) = (d * scale, d_min * minimum);
        for (i, value) in values.iter_mut().enumerate() {
            let e = 32 * sub + i;
            let code = four_bits(codes, e) | one_bit(fifth, e) << 4;
            *value = scale * f32::from(code) - minimum;
        }
    }
}

/// 16 sub-blocks of 16. `w = d * scale * (q - 32)`, scale a signed byte, `q` of 6 bits.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (sub, values) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[sub] as i8);
        for (i, value) in values.iter_mut().enumerate() {
            let e = 16 * sub + i;
            // Nibbles: 128 elements share 64 bytes, the first 64 in the low nibbles.
            let nibble = low[e / 128 * 64 + e % 64] >> (e % 128 / 64 * 4) & 15;
            let code = nibble | two_bits(high, e) << 4;
            *value = scale * (f32::from(code) - 32.0);
        }
    }
}
