// A word of the codes, which are bound as vectors of CODE_LANES words.
fn code_word(index: u32) -> u32 {
    return codes[index / CODE_LANES][index % CODE_LANES];
}
