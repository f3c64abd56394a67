// A block of 32 codes of 2 bits as bytes, four in a word (src/tensor/block.rs). Needs: codes, params.code_words.
fn block_bytes(row: u32, block: u32) -> array<u32, 8> {
    let first = (row * params.code_words + block * 2u) / 2u;
    let v0 = codes[first];
    return array<u32, 8>(
        v0.x & 0x03030303u,
        (v0.x >> 2u) & 0x03030303u,
        (v0.x >> 4u) & 0x03030303u,
        (v0.x >> 6u) & 0x03030303u,
        v0.y & 0x03030303u,
        (v0.y >> 2u) & 0x03030303u,
        (v0.y >> 4u) & 0x03030303u,
        (v0.y >> 6u) & 0x03030303u,
    );
}
