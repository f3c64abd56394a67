// A block of 32 codes of 8 bits as signed bytes, 128 less, four in a word (src/tensor/block.rs).
// Loading and taking apart are two steps, so that other work may stand between. Needs: codes, params.code_words.
alias block_t = array<code_t, 2>;

fn block_load(row: u32, block: u32) -> block_t {
    let first = (row * params.code_words + block * 8u) / 4u;
    return block_t(codes[first], codes[first + 1u]);
}

fn block_bytes(words: block_t) -> array<u32, 8> {
    return array<u32, 8>(
        words[0].x ^ 0x80808080u,
        words[0].y ^ 0x80808080u,
        words[0].z ^ 0x80808080u,
        words[0].w ^ 0x80808080u,
        words[1].x ^ 0x80808080u,
        words[1].y ^ 0x80808080u,
        words[1].z ^ 0x80808080u,
        words[1].w ^ 0x80808080u,
    );
}
