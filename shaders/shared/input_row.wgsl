// Four activations of a row. `column` is a multiple of 4, less than the padded columns. Needs: x, vectors of four; params.columns.
fn row4(row: u32, column: u32) -> vec4<f32> {
    return vec4<f32>(x[row * ((params.columns + 3u) / 4u) + column / 4u]);
}
