// Eight columns of a cache of 4 bits: the first four are the low halves of a word's bytes (src/tensor/block.rs).
#import quad_affine
alias eight_t = u32;

fn eight_values(codes: eight_t, grid: vec2<f32>) -> mat2x4<f32> {
    return mat2x4(
        quad_values(codes & 0x0f0f0f0fu, grid),
        quad_values((codes >> 4u) & 0x0f0f0f0fu, grid),
    );
}
