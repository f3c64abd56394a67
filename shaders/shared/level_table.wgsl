// What a code stands for: an entry of the codebook, in workgroup memory, which neighbours read at different places at once.
// Needs: BITS.
var<workgroup> level_table: array<f32, 1u << BITS>;

fn level(code: u32) -> f32 {
    return level_table[code];
}
