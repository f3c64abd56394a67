// Eight columns of a cache of 8 bits: bytes in order (src/tensor/block.rs).
#import quad_affine
alias eight_t = vec2<u32>;

fn eight_values(codes: eight_t, grid: vec2<f32>) -> mat2x4<f32> {
    return mat2x4(quad_values(codes.x, grid), quad_values(codes.y, grid));
}
