// A block of 32 codes of BITS bits, put together in registers and stored as BITS words (src/tensor/block.rs).
// Needs: codes.
var<private> block_words: array<u32, BITS>;

fn put_code(code: u32, place: u32) {
    let quad = place >> 2u;
    let byte = 8u * (place & 3u);
    if BITS == 8u {
        block_words[quad] |= code << byte;
        return;
    }
    var word = 0u;
    if (BITS & 4u) != 0u {
        block_words[quad >> 1u] |= (code & 15u) << (byte + 4u * (quad & 1u));
        word = 4u;
    }
    if (BITS & 2u) != 0u {
        block_words[word + (quad >> 2u)] |= ((code >> (BITS & 4u)) & 3u) << (byte + 2u * (quad & 3u));
        word += 2u;
    }
    if (BITS & 1u) != 0u {
        block_words[word] |= ((code >> (BITS & 6u)) & 1u) << (byte + quad);
    }
}

fn store_block(first: u32) {
    for (var word = 0u; word < BITS; word++) {
        codes[first + word] = block_words[word];
    }
}
