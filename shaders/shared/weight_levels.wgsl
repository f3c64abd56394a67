// Four weights of a row whose codes are levels: floats of few bits, or entries of a codebook. `column` is a multiple of 4,
// so that four columns never straddle two groups.
#import codes4
#import level
#import group_scale

fn weight4(row: u32, column: u32) -> vec4<f32> {
    let code = codes4(row, column);
    return group_scale(row, column) * vec4(level(code.x), level(code.y), level(code.z), level(code.w));
}
