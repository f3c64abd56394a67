// A block of 32 codes of 7 bits as bytes, four in a word (src/tensor/block.rs). Needs: codes, params.code_words.
fn block_bytes(row: u32, block: u32) -> array<u32, 8> {
    let first = row * params.code_words + block * 7u;
    let v0 = codes[first];
    let v1 = codes[first + 1u];
    let v2 = codes[first + 2u];
    let v3 = codes[first + 3u];
    let v4 = codes[first + 4u];
    let v5 = codes[first + 5u];
    let v6 = codes[first + 6u];
    return array<u32, 8>(
        (v0 & 0x0f0f0f0fu) | ((v4 & 0x03030303u) << 4u) | ((v6 & 0x01010101u) << 6u),
        ((v0 >> 4u) & 0x0f0f0f0fu) | (((v4 >> 2u) & 0x03030303u) << 4u) | (((v6 >> 1u) & 0x01010101u) << 6u),
        (v1 & 0x0f0f0f0fu) | (((v4 >> 4u) & 0x03030303u) << 4u) | (((v6 >> 2u) & 0x01010101u) << 6u),
        ((v1 >> 4u) & 0x0f0f0f0fu) | (((v4 >> 6u) & 0x03030303u) << 4u) | (((v6 >> 3u) & 0x01010101u) << 6u),
        (v2 & 0x0f0f0f0fu) | ((v5 & 0x03030303u) << 4u) | (((v6 >> 4u) & 0x01010101u) << 6u),
        ((v2 >> 4u) & 0x0f0f0f0fu) | (((v5 >> 2u) & 0x03030303u) << 4u) | (((v6 >> 5u) & 0x01010101u) << 6u),
        (v3 & 0x0f0f0f0fu) | (((v5 >> 4u) & 0x03030303u) << 4u) | (((v6 >> 6u) & 0x01010101u) << 6u),
        ((v3 >> 4u) & 0x0f0f0f0fu) | (((v5 >> 6u) & 0x03030303u) << 4u) | (((v6 >> 7u) & 0x01010101u) << 6u),
    );
}
