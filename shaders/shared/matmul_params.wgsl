// What the products share: result = x * weight^T (+ bias). A call covers tokens [token_start, token_start + tokens), whose
// results stand from row result_start on, and rows of the weight from row_start on, whose results stand from column
// out_offset on. Needs: bias, result.
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
@group(1) @binding(0) var<uniform> params: Params;

fn store_result(token: u32, row: u32, sum: f32) {
    let place = params.out_offset + row;
    var value = sum;
    if params.has_bias == 1u {
        value += bias[place];
    }
    result[(params.result_start + token) * params.out_stride + place] = out_t(value);
}
