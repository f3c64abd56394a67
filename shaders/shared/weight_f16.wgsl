// Four weights of a row, f16 in pairs, without the f16 feature. Needs: codes, params.code_words.
// `column` is a multiple of 4; rows are padded to 32.
fn weight4(row: u32, column: u32) -> vec4<f32> {
    let eight = codes[(row * params.code_words + column / 2u) / 4u];
    let pairs = select(eight.xy, eight.zw, (column & 4u) != 0u);
    return vec4(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
}
