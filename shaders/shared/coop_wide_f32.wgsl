// Four weights in f32: the words they take, and their values.
const WIDE_WORDS: u32 = 4u;

fn wide_values(loaded: code_t) -> vec4<f16> {
    return vec4<f16>(bitcast<vec4<f32>>(loaded));
}
