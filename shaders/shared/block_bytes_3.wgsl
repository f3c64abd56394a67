// A block of 32 codes of 3 bits as bytes, four in a word (src/tensor/block.rs).
// Loading and taking apart are two steps, so that other work may stand between. Needs: codes, params.code_words.
alias block_t = array<code_t, 3>;

fn block_load(row: u32, block: u32) -> block_t {
    let first = row * params.code_words + block * 3u;
    return block_t(codes[first], codes[first + 1u], codes[first + 2u]);
}

fn block_bytes(words: block_t) -> array<u32, 8> {
    return array<u32, 8>(
        (words[0] & 0x03030303u) | ((words[2] & 0x01010101u) << 2u),
        ((words[0] >> 2u) & 0x03030303u) | (((words[2] >> 1u) & 0x01010101u) << 2u),
        ((words[0] >> 4u) & 0x03030303u) | (((words[2] >> 2u) & 0x01010101u) << 2u),
        ((words[0] >> 6u) & 0x03030303u) | (((words[2] >> 3u) & 0x01010101u) << 2u),
        (words[1] & 0x03030303u) | (((words[2] >> 4u) & 0x01010101u) << 2u),
        ((words[1] >> 2u) & 0x03030303u) | (((words[2] >> 5u) & 0x01010101u) << 2u),
        ((words[1] >> 4u) & 0x03030303u) | (((words[2] >> 6u) & 0x01010101u) << 2u),
        ((words[1] >> 6u) & 0x03030303u) | (((words[2] >> 7u) & 0x01010101u) << 2u),
    );
}
