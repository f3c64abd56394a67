// What a product by lookup holds of four tokens: an entry has one number for each, so that one lookup serves all (Vec-LUT,
// arXiv 2512.06443). Needs: act, halves.
const TOKENS: u32 = 4u;
alias entry_t = vec4<act>;
alias sum_t = vec4<f32>;
alias of_tokens = array<u32, 4>;

// Entry `j` of four entries of each token.
fn entry(four: array<vec4<act>, TOKENS>, j: u32) -> entry_t {
    return entry_t(four[0][j], four[1][j], four[2][j], four[3][j]);
}

// The sum of a block's activations. `starts`: where each token's begin.
fn block_total(starts: of_tokens, block: u32) -> sum_t {
    let first = vec4(halves[starts[0] + block].x, halves[starts[1] + block].x, halves[starts[2] + block].x, halves[starts[3] + block].x);
    let second = vec4(halves[starts[0] + block].y, halves[starts[1] + block].y, halves[starts[2] + block].y, halves[starts[3] + block].y);
    return first + second;
}

fn of_token(sum: sum_t, t: u32) -> f32 {
    return sum[t];
}
