// The scale of a column's group in a super-block of 256 columns, and its offset or the code that stands for 0. SCALE: 7 with
// minima, 8 symmetric; a group has GROUP columns, and half a bit a column for its integers (src/tensor/super_block.rs). All
// products here are exact. Needs: scales, params.scale_words, BITS.
fn group_grid(row: u32, column: u32) -> vec2<f32> {
    let base = row * params.scale_words + 5u * (column >> 8u);
    let halves = unpack2x16float(scales[base]);
    let bit = ((column & 255u) & ~(GROUP - 1u)) / 2u;
    let word = scales[base + 1u + (bit >> 5u)];
    if SCALE == 7u {
        let integer = extractBits(word, bit & 31u, GROUP / 4u);
        let minimum = extractBits(word, (bit & 31u) + GROUP / 4u, GROUP / 4u);
        return vec2(halves.x * f32(integer), -(halves.y * f32(minimum)));
    }
    let integer = extractBits(bitcast<i32>(word), bit & 31u, GROUP / 2u);
    return vec2(halves.x * f32(integer), f32(1u << (BITS - 1u)));
}
