// A block of 32 codes as bytes that are the codes themselves (span_dot). Needs: block_bytes, SCALE.
const PART_CLASSES: u32 = 1u;

fn block_parts(words: block_t) -> array<u32, 8> {
    var bytes = block_bytes(words);
    if BITS == 8u {
        for (var quad = 0u; quad < 8u; quad++) {
            bytes[quad] ^= 0x80808080u;
        }
    }
    if SCALE == 4u {
        // Ternary codes of 3 stand for 0, as 1 does.
        for (var quad = 0u; quad < 8u; quad++) {
            let four = bytes[quad];
            bytes[quad] = four ^ ((four & (four >> 1u) & 0x01010101u) << 1u);
        }
    }
    return bytes;
}
