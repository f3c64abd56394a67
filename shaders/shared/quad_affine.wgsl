// Four affine codes of BITS bits as numbers. SCALE: 1 symmetric, 2 zero point, 3 offset (src/tensor/weight.rs).
// Needs: scales, params.scale_words, params.group_shift (log2 of the group's columns; 31: one group per row).

// A group's scale, and its zero point or offset.
fn group_grid(row: u32, column: u32) -> vec2<f32> {
    let group = column >> params.group_shift;
    if SCALE == 1u {
        let pair = unpack2x16float(scales[row * params.scale_words + (group >> 1u)]);
        return vec2(select(pair.x, pair.y, (group & 1u) == 1u), f32(1u << (BITS - 1u)));
    }
    return unpack2x16float(scales[row * params.scale_words + group]);
}

// (Putting code bits under the exponent of 1024 in f16 instead, to spare the conversions, was a tenth slower on an H200.)
fn quad_values(bytes: u32, grid: vec2<f32>) -> vec4<f32> {
    let code = vec4<f32>(unpack4xU8(bytes));
    if SCALE == 3u {
        return grid.x * code + vec4(grid.y);
    }
    return grid.x * (code - vec4(grid.y));
}
