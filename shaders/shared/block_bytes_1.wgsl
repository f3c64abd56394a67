// A block of 32 codes of 1 bit as bytes, four in a word (src/tensor/block.rs). Needs: codes, params.code_words.
fn block_bytes(row: u32, block: u32) -> array<u32, 8> {
    let first = row * params.code_words + block * 1u;
    let v0 = codes[first];
    return array<u32, 8>(
        v0 & 0x01010101u,
        (v0 >> 1u) & 0x01010101u,
        (v0 >> 2u) & 0x01010101u,
        (v0 >> 3u) & 0x01010101u,
        (v0 >> 4u) & 0x01010101u,
        (v0 >> 5u) & 0x01010101u,
        (v0 >> 6u) & 0x01010101u,
        (v0 >> 7u) & 0x01010101u,
    );
}
