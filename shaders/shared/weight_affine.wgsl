// Four weights of a row, affine codes. `column` is a multiple of 4, so that four columns never straddle two groups.
#import code_bytes
#import group_grid
#import quad

fn weight4(row: u32, column: u32) -> vec4<f32> {
    return quad_values(code_bytes(row, column), group_grid(row, column));
}
