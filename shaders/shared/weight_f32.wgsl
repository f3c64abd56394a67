// Four weights of a row, f32. Needs: codes, params.code_words. `column` is a multiple of 4; rows are padded to 32.
fn weight4(row: u32, column: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(codes[(row * params.code_words + column) / 4u]);
}
