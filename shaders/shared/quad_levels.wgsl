// Four codes of levels, floats of few bits or entries of a codebook, as numbers.
#import level
#import group_scale

fn group_grid(row: u32, column: u32) -> vec2<f32> {
    return vec2(group_scale(row, column), 0.0);
}

fn quad_values(bytes: u32, grid: vec2<f32>) -> vec4<f32> {
    let code = unpack4xU8(bytes);
    return grid.x * vec4(level(code.x), level(code.y), level(code.z), level(code.w));
}
