// Four weights of a row, bf16 in pairs: the upper halves of f32. Needs: codes, params.code_words.
// `column` is a multiple of 4; rows are padded to 32.
fn weight4(row: u32, column: u32) -> vec4<f32> {
    let eight = codes[(row * params.code_words + column / 2u) / 4u];
    let pair = select(eight.xy, eight.zw, (column & 4u) != 0u);
    let low = bitcast<vec2<f32>>(pair << vec2(16u));
    let high = bitcast<vec2<f32>>(pair & vec2(0xffff0000u));
    return vec4(low.x, high.x, low.y, high.y);
}
