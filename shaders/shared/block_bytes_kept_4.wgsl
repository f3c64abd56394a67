// A block of 32 columns of 4-bit codes, two of every four kept, as bytes, four in a word.
// Loading and taking apart are two steps, so that other work may stand between.
#import kept_place
#import kept_bytes

struct block_t {
    codes: vec2<u32>,
    kept: u32,
}

fn block_load(row: u32, block: u32) -> block_t {
    return block_t(codes[kept_codes(row) / 2u + block], kept_columns(row, block));
}

fn block_bytes(words: block_t) -> array<u32, 8> {
    let low = words.codes & vec2(0x0f0f0f0fu);
    let high = (words.codes >> vec2(4u)) & vec2(0x0f0f0f0fu);
    return array<u32, 8>(
        kept_bytes(low.x, words.kept),
        kept_bytes(low.x >> 16u, words.kept >> 1u),
        kept_bytes(high.x, words.kept >> 2u),
        kept_bytes(high.x >> 16u, words.kept >> 3u),
        kept_bytes(low.y, words.kept >> 4u),
        kept_bytes(low.y >> 16u, words.kept >> 5u),
        kept_bytes(high.y, words.kept >> 6u),
        kept_bytes(high.y >> 16u, words.kept >> 7u),
    );
}
