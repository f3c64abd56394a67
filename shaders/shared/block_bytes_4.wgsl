// A block of 32 codes of 4 bits as bytes, four in a word (src/tensor/block.rs). Needs: codes, params.code_words.
fn block_bytes(row: u32, block: u32) -> array<u32, 8> {
    let first = (row * params.code_words + block * 4u) / 4u;
    let v0 = codes[first];
    return array<u32, 8>(
        v0.x & 0x0f0f0f0fu,
        (v0.x >> 4u) & 0x0f0f0f0fu,
        v0.y & 0x0f0f0f0fu,
        (v0.y >> 4u) & 0x0f0f0f0fu,
        v0.z & 0x0f0f0f0fu,
        (v0.z >> 4u) & 0x0f0f0f0fu,
        v0.w & 0x0f0f0f0fu,
        (v0.w >> 4u) & 0x0f0f0f0fu,
    );
}
