// What matmul/dot4 sums of a span whose columns share a scale: one integer. Needs: parts_t, four_t, quad_dots, added_parts.
#import block_grid
alias dots_t = i32;
alias wide_t = f32;
alias grid_t = vec2<f32>;

// A span's scale and offset. `block` is its first.
fn span_grid(row: u32, block: u32) -> grid_t {
    return block_grid(row, block);
}

fn span_dot(parts: parts_t, x: four_t) -> dots_t {
    var dots = vec4(0);
    for (var h = 0u; h < 2u * SPAN; h++) {
        dots += quad_dots(parts, x, h);
    }
    return added_parts(dots);
}

// The sum of a span's activations stands beside their scale.
fn span_total(x: four_t) -> dots_t {
    return 0;
}

// `scale`: that of the activations, and their sum.
fn span_sum(grid: grid_t, sum: wide_t, total: dots_t, scale: vec2<f32>) -> f32 {
    return grid.x * sum + grid.y * scale.y;
}
