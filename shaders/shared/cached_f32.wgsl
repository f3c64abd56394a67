// Eight columns of a cache of f32.
alias eight_t = array<vec4<u32>, 2>;

fn eight_values(codes: eight_t, grid: vec2<f32>) -> mat2x4<f32> {
    return mat2x4(bitcast<vec4<f32>>(codes[0]), bitcast<vec4<f32>>(codes[1]));
}
