// Four codes of BITS bits of a row, as the bytes of a word (src/tensor/block.rs: a code's parts of 4, 2 and 1 bits stand in
// words of their own). Needs: codes, params.code_words. `column` is a multiple of 4.
#import code_word

fn code_bytes(row: u32, column: u32) -> u32 {
    var word = row * params.code_words + (column >> 5u) * BITS;
    let quad = (column >> 2u) & 7u;
    if BITS == 8u {
        return code_word(word + quad);
    }
    var bytes = 0u;
    if (BITS & 4u) != 0u {
        bytes = (code_word(word + (quad >> 1u)) >> (4u * (quad & 1u))) & 0x0f0f0f0fu;
        word += 4u;
    }
    if (BITS & 2u) != 0u {
        let part = (code_word(word + (quad >> 2u)) >> (2u * (quad & 3u))) & 0x03030303u;
        bytes |= part << (BITS & 4u);
        word += 2u;
    }
    if (BITS & 1u) != 0u {
        let part = (code_word(word) >> quad) & 0x01010101u;
        bytes |= part << (BITS & 6u);
    }
    return bytes;
}
