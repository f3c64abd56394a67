// A block of 32 codes of 8 bits as signed bytes, 128 less, four in a word (src/tensor/block.rs). Needs: codes, params.code_words.
fn block_bytes(row: u32, block: u32) -> array<u32, 8> {
    let first = (row * params.code_words + block * 8u) / 4u;
    let v0 = codes[first];
    let v1 = codes[first + 1u];
    return array<u32, 8>(
        v0.x ^ 0x80808080u,
        v0.y ^ 0x80808080u,
        v0.z ^ 0x80808080u,
        v0.w ^ 0x80808080u,
        v1.x ^ 0x80808080u,
        v1.y ^ 0x80808080u,
        v1.z ^ 0x80808080u,
        v1.w ^ 0x80808080u,
    );
}
