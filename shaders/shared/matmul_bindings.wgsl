// What both matrix products share: result = x * weight^T (+ bias). A call covers tokens [token_start, token_start +
// tokens), whose results stand from row result_start on, and rows of the weight from
// row_start on, whose results stand from column out_offset on.
struct Params {
    rows: u32,
    row_start: u32,
    columns: u32,
    tokens: u32,
    token_start: u32,
    result_start: u32,
    out_stride: u32,
    out_offset: u32,
    has_bias: u32,
    code_words: u32,
    scale_words: u32,
    group_shift: u32,
}
@group(0) @binding(0) var<storage, read> x: array<act>;                // (all tokens, columns)
@group(0) @binding(1) var<storage, read> codes: array<code_t>;           // (rows, code_words)
@group(0) @binding(2) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(3) var<storage, read> bias: array<f32>;             // (out_stride), or one unused value
@group(0) @binding(4) var<storage, read_write> result: array<out_t>;   // (all tokens, out_stride)
@group(1) @binding(0) var<uniform> params: Params;

fn store_result(token: u32, row: u32, sum: f32) {
    let place = params.out_offset + row;
    var value = sum;
    if params.has_bias == 1u {
        value += bias[place];
    }
    result[(params.result_start + token) * params.out_stride + place] = out_t(value);
}

// Four activations of a token, zero beyond the row: the padding of a weight row then adds nothing.
fn x4(token: u32, column: u32) -> vec4<f32> {
    let at = (params.token_start + token) * params.columns + column;
    if column + 4u <= params.columns {
        return vec4(f32(x[at]), f32(x[at + 1u]), f32(x[at + 2u]), f32(x[at + 3u]));
    }
    var values = vec4(0.0);
    for (var i = 0u; column + i < params.columns; i++) {
        values[i] = f32(x[at + i]);
    }
    return values;
}
