// Weights on their way into a tile: bf16, rounded to f16, four columns of a row at a time.
fn load_weight(lane: u32, piece: u32, first_row: u32, start: u32) -> code_t {
    let row = params.row_start + min(first_row + spread(lane / QUADS + piece * LINES), params.rows - 1u);
    let column = start + lane % QUADS * 4u;
    if column >= params.columns {
        return code_t();
    }
    return codes[row * (params.code_words / 2u) + column / 4u];
}

fn store_weight(lane: u32, piece: u32, loaded: code_t) {
    weight_tile[spread(lane / QUADS + piece * LINES) * PITCH + lane % QUADS] = vec4<f16>(bitcast<vec4<f32>>(vec4(loaded.x << 16u, loaded.x & 0xffff0000u, loaded.y << 16u, loaded.y & 0xffff0000u)));
}
