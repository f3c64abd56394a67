// A block of 32 codes of 3 bits as bytes, four in a word (src/tensor/block.rs). Needs: codes, params.code_words.
fn block_bytes(row: u32, block: u32) -> array<u32, 8> {
    let first = row * params.code_words + block * 3u;
    let v0 = codes[first];
    let v1 = codes[first + 1u];
    let v2 = codes[first + 2u];
    return array<u32, 8>(
        (v0 & 0x03030303u) | ((v2 & 0x01010101u) << 2u),
        ((v0 >> 2u) & 0x03030303u) | (((v2 >> 1u) & 0x01010101u) << 2u),
        ((v0 >> 4u) & 0x03030303u) | (((v2 >> 2u) & 0x01010101u) << 2u),
        ((v0 >> 6u) & 0x03030303u) | (((v2 >> 3u) & 0x01010101u) << 2u),
        (v1 & 0x03030303u) | (((v2 >> 4u) & 0x01010101u) << 2u),
        ((v1 >> 2u) & 0x03030303u) | (((v2 >> 5u) & 0x01010101u) << 2u),
        ((v1 >> 4u) & 0x03030303u) | (((v2 >> 6u) & 0x01010101u) << 2u),
        ((v1 >> 6u) & 0x03030303u) | (((v2 >> 7u) & 0x01010101u) << 2u),
    );
}
