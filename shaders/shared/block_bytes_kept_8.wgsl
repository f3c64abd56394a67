// A block of 32 columns of 8-bit codes, two of every four kept, as bytes, four in a word.
// Loading and taking apart are two steps, so that other work may stand between.
#import kept_place
#import kept_bytes

struct block_t {
    codes: vec4<u32>,
    kept: u32,
}

fn block_load(row: u32, block: u32) -> block_t {
    return block_t(codes[kept_codes(row) / 4u + block], kept_columns(row, block));
}

fn block_bytes(words: block_t) -> array<u32, 8> {
    return array<u32, 8>(
        kept_bytes(words.codes.x, words.kept),
        kept_bytes(words.codes.x >> 16u, words.kept >> 1u),
        kept_bytes(words.codes.y, words.kept >> 2u),
        kept_bytes(words.codes.y >> 16u, words.kept >> 3u),
        kept_bytes(words.codes.z, words.kept >> 4u),
        kept_bytes(words.codes.z >> 16u, words.kept >> 5u),
        kept_bytes(words.codes.w, words.kept >> 6u),
        kept_bytes(words.codes.w >> 16u, words.kept >> 7u),
    );
}
