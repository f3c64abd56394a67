// A block of 32 codes of 1 bit as bytes, four in a word (src/tensor/block.rs).
// Loading and taking apart are two steps, so that other work may stand between. Needs: codes, params.code_words.
alias block_t = array<code_t, 1>;

fn block_load(row: u32, block: u32) -> block_t {
    let first = row * params.code_words + block * 1u;
    return block_t(codes[first]);
}

fn block_bytes(words: block_t) -> array<u32, 8> {
    return array<u32, 8>(
        words[0] & 0x01010101u,
        (words[0] >> 1u) & 0x01010101u,
        (words[0] >> 2u) & 0x01010101u,
        (words[0] >> 3u) & 0x01010101u,
        (words[0] >> 4u) & 0x01010101u,
        (words[0] >> 5u) & 0x01010101u,
        (words[0] >> 6u) & 0x01010101u,
        (words[0] >> 7u) & 0x01010101u,
    );
}
