// Eight columns of a cache of f16, in pairs, without the f16 feature.
alias eight_t = vec4<u32>;

fn eight_values(codes: eight_t, grid: vec2<f32>) -> mat2x4<f32> {
    return mat2x4(
        vec4(unpack2x16float(codes.x), unpack2x16float(codes.y)),
        vec4(unpack2x16float(codes.z), unpack2x16float(codes.w)),
    );
}
