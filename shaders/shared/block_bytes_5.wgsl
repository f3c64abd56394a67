// A block of 32 codes of 5 bits as bytes, four in a word (src/tensor/block.rs). Needs: codes, params.code_words.
fn block_bytes(row: u32, block: u32) -> array<u32, 8> {
    let first = row * params.code_words + block * 5u;
    let v0 = codes[first];
    let v1 = codes[first + 1u];
    let v2 = codes[first + 2u];
    let v3 = codes[first + 3u];
    let v4 = codes[first + 4u];
    return array<u32, 8>(
        (v0 & 0x0f0f0f0fu) | ((v4 & 0x01010101u) << 4u),
        ((v0 >> 4u) & 0x0f0f0f0fu) | (((v4 >> 1u) & 0x01010101u) << 4u),
        (v1 & 0x0f0f0f0fu) | (((v4 >> 2u) & 0x01010101u) << 4u),
        ((v1 >> 4u) & 0x0f0f0f0fu) | (((v4 >> 3u) & 0x01010101u) << 4u),
        (v2 & 0x0f0f0f0fu) | (((v4 >> 4u) & 0x01010101u) << 4u),
        ((v2 >> 4u) & 0x0f0f0f0fu) | (((v4 >> 5u) & 0x01010101u) << 4u),
        (v3 & 0x0f0f0f0fu) | (((v4 >> 6u) & 0x01010101u) << 4u),
        ((v3 >> 4u) & 0x0f0f0f0fu) | (((v4 >> 7u) & 0x01010101u) << 4u),
    );
}
