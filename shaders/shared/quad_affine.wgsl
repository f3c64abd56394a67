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

// Converting integers is slow on many devices: as the bits of f16 a code is 1024 more, which is taken off exactly.
fn quad_values(bytes: u32, grid: vec2<f32>) -> vec4<f32> {
    let even = unpack2x16float((bytes & 0x00ff00ffu) | 0x64006400u);
    let odd = unpack2x16float(((bytes >> 8u) & 0x00ff00ffu) | 0x64006400u);
    let raised = vec4(even.x, odd.x, even.y, odd.y);
    if SCALE == 1u {
        return grid.x * (raised - vec4(1024.0 + grid.y));
    }
    let code = raised - vec4(1024.0);
    if SCALE == 3u {
        return grid.x * code + vec4(grid.y);
    }
    return grid.x * (code - vec4(grid.y));
}
