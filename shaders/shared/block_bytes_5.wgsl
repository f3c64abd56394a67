// A block of 32 codes of 5 bits as bytes, four in a word (src/tensor/block.rs).
// Loading and taking apart are two steps, so that other work may stand between. Needs: codes, params.code_words.
alias block_t = array<code_t, 5>;

fn block_load(row: u32, block: u32) -> block_t {
    let first = row * params.code_words + block * 5u;
    return block_t(codes[first], codes[first + 1u], codes[first + 2u], codes[first + 3u], codes[first + 4u]);
}

fn block_bytes(words: block_t) -> array<u32, 8> {
    return array<u32, 8>(
        (words[0] & 0x0f0f0f0fu) | ((words[4] & 0x01010101u) << 4u),
        ((words[0] >> 4u) & 0x0f0f0f0fu) | (((words[4] >> 1u) & 0x01010101u) << 4u),
        (words[1] & 0x0f0f0f0fu) | (((words[4] >> 2u) & 0x01010101u) << 4u),
        ((words[1] >> 4u) & 0x0f0f0f0fu) | (((words[4] >> 3u) & 0x01010101u) << 4u),
        (words[2] & 0x0f0f0f0fu) | (((words[4] >> 4u) & 0x01010101u) << 4u),
        ((words[2] >> 4u) & 0x0f0f0f0fu) | (((words[4] >> 5u) & 0x01010101u) << 4u),
        (words[3] & 0x0f0f0f0fu) | (((words[4] >> 6u) & 0x01010101u) << 4u),
        ((words[3] >> 4u) & 0x0f0f0f0fu) | (((words[4] >> 7u) & 0x01010101u) << 4u),
    );
}
