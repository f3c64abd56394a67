// Four codes of BITS bits, 4 or 8, of a row that keeps two of four, as the bytes of a word. `column` is a multiple of 4.
#import kept_place
#import kept_bytes

fn code_bytes(row: u32, column: u32) -> u32 {
    let block = column >> 5u;
    let quad = (column >> 2u) & 7u;
    // The codes of two quads are the bytes of a word, or of every other four bits of one.
    var fours = quad >> 1u;
    var shift = 16u * (quad & 1u);
    if BITS == 4u {
        shift += 4u * (fours & 1u);
        fours >>= 1u;
    }
    let pair = code_word(kept_codes(row) + block * (BITS / 2u) + fours) >> shift;
    return kept_bytes(select(pair, pair & 0x0f0fu, BITS == 4u), kept_columns(row, block) >> quad);
}
