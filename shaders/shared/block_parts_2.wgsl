// A block of 32 codes of 2 bits as bytes that need fewer shifts: quad q is 4^(q % 2) times its codes (span_dot).
// Needs: block_bytes.
const PART_CLASSES: u32 = 2u;

fn block_parts(words: block_t) -> array<u32, 8> {
    let high = words[0] >> vec2(4u);
    return array<u32, 8>(
        words[0].x & 0x03030303u,
        words[0].x & 0x0c0c0c0cu,
        high.x & 0x03030303u,
        high.x & 0x0c0c0c0cu,
        words[0].y & 0x03030303u,
        words[0].y & 0x0c0c0c0cu,
        high.y & 0x03030303u,
        high.y & 0x0c0c0c0cu,
    );
}
