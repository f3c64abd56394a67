// Four weights in bf16: the words they take, and their values.
const WIDE_WORDS: u32 = 2u;

fn wide_values(loaded: code_t) -> vec4<f16> {
    return vec4<f16>(bitcast<vec4<f32>>(vec4(loaded.x << 16u, loaded.x & 0xffff0000u, loaded.y << 16u, loaded.y & 0xffff0000u)));
}
