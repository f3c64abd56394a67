// Bindings of the products of plain activations, whose rows are padded with zeros to whole vectors of four.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;          // (all tokens, columns, padded to fours)
@group(0) @binding(1) var<storage, read> codes: array<code_t>;         // (rows, code_words)
@group(0) @binding(2) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(3) var<storage, read> bias: array<f32>;             // (out_stride), or one unused value
@group(0) @binding(4) var<storage, read_write> result: array<out_t>;   // (all tokens, out_stride)
#import matmul_params

// Four activations of a token. `column` is a multiple of 4, less than the padded columns.
fn x4(token: u32, column: u32) -> vec4<f32> {
    let fours = (params.columns + 3u) / 4u;
    return vec4<f32>(x[(params.token_start + token) * fours + column / 4u]);
}
