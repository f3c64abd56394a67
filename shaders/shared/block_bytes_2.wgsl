// A block of 32 codes of 2 bits as bytes, four in a word (src/tensor/block.rs).
// Loading and taking apart are two steps, so that other work may stand between. Needs: codes, params.code_words.
alias block_t = array<code_t, 1>;

fn block_load(row: u32, block: u32) -> block_t {
    let first = (row * params.code_words + block * 2u) / 2u;
    return block_t(codes[first]);
}

fn block_bytes(words: block_t) -> array<u32, 8> {
    return array<u32, 8>(
        words[0].x & 0x03030303u,
        (words[0].x >> 2u) & 0x03030303u,
        (words[0].x >> 4u) & 0x03030303u,
        (words[0].x >> 6u) & 0x03030303u,
        words[0].y & 0x03030303u,
        (words[0].y >> 2u) & 0x03030303u,
        (words[0].y >> 4u) & 0x03030303u,
        (words[0].y >> 6u) & 0x03030303u,
    );
}
