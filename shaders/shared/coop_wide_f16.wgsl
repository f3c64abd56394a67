// Four weights in f16: the words they take, and their values.
const WIDE_WORDS: u32 = 2u;

fn wide_values(loaded: code_t) -> vec4<f16> {
    return loaded;
}
