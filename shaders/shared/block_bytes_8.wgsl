// A block of 32 codes of 8 bits as bytes, four in a word (src/tensor/block.rs).
// Loading and taking apart are two steps, so that other work may stand between. Needs: codes, params.code_words.
alias block_t = array<code_t, 2>;

fn block_load(row: u32, block: u32) -> block_t {
    let first = (row * params.code_words + block * 8u) / 4u;
    return block_t(codes[first], codes[first + 1u]);
}

fn block_bytes(words: block_t) -> array<u32, 8> {
    return array<u32, 8>(
        words[0].x,
        words[0].y,
        words[0].z,
        words[0].w,
        words[1].x,
        words[1].y,
        words[1].z,
        words[1].w,
    );
}
