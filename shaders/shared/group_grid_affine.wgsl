// The scale of a column's group, and its zero point or offset, for integers. SCALE: 1 symmetric, 2 zero point, 3 offset
// (src/tensor/weight.rs). Needs: scales, params.scale_words, params.group_shift (log2 of the group's columns; 31: one group
// per row).
fn group_grid(row: u32, column: u32) -> vec2<f32> {
    let group = column >> params.group_shift;
    if SCALE == 1u {
        let pair = unpack2x16float(scales[row * params.scale_words + (group >> 1u)]);
        return vec2(select(pair.x, pair.y, (group & 1u) == 1u), f32(1u << (BITS - 1u)));
    }
    return unpack2x16float(scales[row * params.scale_words + group]);
}
