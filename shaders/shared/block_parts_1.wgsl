// A block of 32 codes of 1 bit as bytes that need fewer shifts: quad q is 2^(q % 4) times its codes (span_dot).
// Needs: block_bytes.
const PART_CLASSES: u32 = 4u;

fn block_parts(words: block_t) -> array<u32, 8> {
    let high = words[0] >> 4u;
    return array<u32, 8>(
        words[0] & 0x01010101u,
        words[0] & 0x02020202u,
        words[0] & 0x04040404u,
        words[0] & 0x08080808u,
        high & 0x01010101u,
        high & 0x02020202u,
        high & 0x04040404u,
        high & 0x08080808u,
    );
}
