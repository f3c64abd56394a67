// What matmul/dot4 sums of a block whose halves have scales of their own, groups of 16 in super-blocks: two integers.
// Needs: parts_t, four_t, quad_dots, added_parts, SCALE.
#import group_grid
alias dots_t = vec2<i32>;
alias wide_t = vec2<f32>;
alias grid_t = vec4<f32>;

// The scales of both halves, then what their sums of activations are multiplied by.
fn span_grid(row: u32, block: u32) -> grid_t {
    let low = group_grid(row, block * 32u);
    let high = group_grid(row, block * 32u + 16u);
    let scales = vec2(low.x, high.x);
    let seconds = vec2(low.y, high.y);
    return vec4(scales, select(-scales * seconds, seconds, SCALE == 7u));
}

fn span_dot(parts: parts_t, x: four_t) -> dots_t {
    return vec2(added_parts(quad_dots(parts, x, 0u)), added_parts(quad_dots(parts, x, 1u)));
}

// The sums of the halves' activations.
fn span_total(x: four_t) -> dots_t {
    var totals = vec2(0);
    for (var quad = 0u; quad < 4u; quad++) {
        totals += vec2(dot4I8Packed(0x01010101u, x[0][quad]), dot4I8Packed(0x01010101u, x[1][quad]));
    }
    return totals;
}

// `scale`: that of the activations.
fn span_sum(grid: grid_t, sum: wide_t, total: dots_t, scale: vec2<f32>) -> f32 {
    return dot(grid.xy, sum) + scale.x * dot(grid.zw, vec2<f32>(total));
}
