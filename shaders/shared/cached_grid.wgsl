// Where the scale of a column of a cache stands, and what the word there says of its group: scale, and what stands for 0 or
// an offset. Apart from loading it, because keys and values are two bindings. SCALE 0: nothing does (src/tensor/weight.rs).
// Needs: params.scale_words, params.group_shift (log2 of the group's columns; 31: one group per row).
fn grid_place(row: u32, column: u32) -> u32 {
    let group = column >> params.group_shift;
    return row * params.scale_words + select(group, group >> 1u, SCALE == 1u);
}

fn grid_of(word: u32, column: u32) -> vec2<f32> {
    let pair = unpack2x16float(word);
    if SCALE == 1u {
        let second = ((column >> params.group_shift) & 1u) == 1u;
        return vec2(select(pair.x, pair.y, second), f32(1u << (BITS - 1u)));
    }
    return pair;
}
