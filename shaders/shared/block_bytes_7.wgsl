// A block of 32 codes of 7 bits as bytes, four in a word (src/tensor/block.rs).
// Loading and taking apart are two steps, so that other work may stand between. Needs: codes, params.code_words.
alias block_t = array<code_t, 7>;

fn block_load(row: u32, block: u32) -> block_t {
    let first = row * params.code_words + block * 7u;
    return block_t(codes[first], codes[first + 1u], codes[first + 2u], codes[first + 3u], codes[first + 4u], codes[first + 5u], codes[first + 6u]);
}

fn block_bytes(words: block_t) -> array<u32, 8> {
    return array<u32, 8>(
        (words[0] & 0x0f0f0f0fu) | ((words[4] & 0x03030303u) << 4u) | ((words[6] & 0x01010101u) << 6u),
        ((words[0] >> 4u) & 0x0f0f0f0fu) | (((words[4] >> 2u) & 0x03030303u) << 4u) | (((words[6] >> 1u) & 0x01010101u) << 6u),
        (words[1] & 0x0f0f0f0fu) | (((words[4] >> 4u) & 0x03030303u) << 4u) | (((words[6] >> 2u) & 0x01010101u) << 6u),
        ((words[1] >> 4u) & 0x0f0f0f0fu) | (((words[4] >> 6u) & 0x03030303u) << 4u) | (((words[6] >> 3u) & 0x01010101u) << 6u),
        (words[2] & 0x0f0f0f0fu) | ((words[5] & 0x03030303u) << 4u) | (((words[6] >> 4u) & 0x01010101u) << 6u),
        ((words[2] >> 4u) & 0x0f0f0f0fu) | (((words[5] >> 2u) & 0x03030303u) << 4u) | (((words[6] >> 5u) & 0x01010101u) << 6u),
        (words[3] & 0x0f0f0f0fu) | (((words[5] >> 4u) & 0x03030303u) << 4u) | (((words[6] >> 6u) & 0x01010101u) << 6u),
        ((words[3] >> 4u) & 0x0f0f0f0fu) | (((words[5] >> 6u) & 0x03030303u) << 4u) | (((words[6] >> 7u) & 0x01010101u) << 6u),
    );
}
