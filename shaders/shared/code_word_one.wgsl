// A word of the codes, which are bound as words.
fn code_word(index: u32) -> u32 {
    return codes[index];
}
