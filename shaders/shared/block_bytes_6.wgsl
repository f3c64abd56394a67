// A block of 32 codes of 6 bits as bytes, four in a word (src/tensor/block.rs). Needs: codes, params.code_words.
fn block_bytes(row: u32, block: u32) -> array<u32, 8> {
    let first = (row * params.code_words + block * 6u) / 2u;
    let v0 = codes[first];
    let v1 = codes[first + 1u];
    let v2 = codes[first + 2u];
    return array<u32, 8>(
        (v0.x & 0x0f0f0f0fu) | ((v2.x & 0x03030303u) << 4u),
        ((v0.x >> 4u) & 0x0f0f0f0fu) | (((v2.x >> 2u) & 0x03030303u) << 4u),
        (v0.y & 0x0f0f0f0fu) | (((v2.x >> 4u) & 0x03030303u) << 4u),
        ((v0.y >> 4u) & 0x0f0f0f0fu) | (((v2.x >> 6u) & 0x03030303u) << 4u),
        (v1.x & 0x0f0f0f0fu) | ((v2.y & 0x03030303u) << 4u),
        ((v1.x >> 4u) & 0x0f0f0f0fu) | (((v2.y >> 2u) & 0x03030303u) << 4u),
        (v1.y & 0x0f0f0f0fu) | (((v2.y >> 4u) & 0x03030303u) << 4u),
        ((v1.y >> 4u) & 0x0f0f0f0fu) | (((v2.y >> 6u) & 0x03030303u) << 4u),
    );
}
