// A block of 32 codes of 3 bits as bytes that need fewer shifts: quad q is 4^(q % 2) times its codes (span_dot).
// Needs: block_bytes.
const PART_CLASSES: u32 = 2u;

fn block_parts(words: block_t) -> array<u32, 8> {
    let first = words[0] >> 4u;
    let second = words[1] >> 4u;
    // The highest bit of quad q stands at bit q, and goes to bit 2 or, four times as much, to bit 4.
    let top = words[2];
    return array<u32, 8>(
        (words[0] & 0x03030303u) | ((top << 2u) & 0x04040404u),
        (words[0] & 0x0c0c0c0cu) | ((top << 3u) & 0x10101010u),
        (first & 0x03030303u) | (top & 0x04040404u),
        (first & 0x0c0c0c0cu) | ((top << 1u) & 0x10101010u),
        (words[1] & 0x03030303u) | ((top >> 2u) & 0x04040404u),
        (words[1] & 0x0c0c0c0cu) | ((top >> 1u) & 0x10101010u),
        (second & 0x03030303u) | ((top >> 4u) & 0x04040404u),
        (second & 0x0c0c0c0cu) | ((top >> 3u) & 0x10101010u),
    );
}
