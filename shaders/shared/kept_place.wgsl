// Where the codes of a row stand of which only some columns are kept (src/tensor/packed.rs): behind a word for each block
// of 32 columns, bit 8 i + q of which says whether column 4 q + i is kept. Needs: codes, params.code_words, params.columns.
#import code_word

// The word of a row's first code.
fn kept_codes(row: u32) -> u32 {
    return row * params.code_words + (params.columns + 127u) / 128u * 4u;
}

// Which columns of a block are kept.
fn kept_columns(row: u32, block: u32) -> u32 {
    return code_word(row * params.code_words + block);
}
