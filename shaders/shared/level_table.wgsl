// What a code stands for: an entry of the codebook.
fn level(code: u32) -> f32 {
    return level_table[code];
}
