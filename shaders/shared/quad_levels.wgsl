// Four codes of levels, floats of few bits or entries of a codebook, as numbers.
#import level

fn quad_values(bytes: u32, grid: vec2<f32>) -> vec4<f32> {
    let code = unpack4xU8(bytes);
    return grid.x * vec4(level(code.x), level(code.y), level(code.z), level(code.w));
}
