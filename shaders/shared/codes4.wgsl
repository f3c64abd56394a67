// Four codes of BITS bits of a row. Needs: codes, params.code_words. `column` is a multiple of 4.
fn codes4(row: u32, column: u32) -> vec4<u32> {
    let bit = column * BITS;
    let word = row * params.code_words + (bit >> 5u);
    let shift = bit & 31u;
    var packed = codes[word] >> shift;
    if shift + 4u * BITS > 32u {
        packed |= codes[word + 1u] << (32u - shift);
    }
    return (vec4(packed) >> vec4(0u, BITS, 2u * BITS, 3u * BITS)) & vec4((1u << BITS) - 1u);
}
