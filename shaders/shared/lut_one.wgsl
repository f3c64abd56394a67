// What a product by lookup holds of one token. Needs: act, halves.
const TOKENS: u32 = 1u;
alias entry_t = act;
alias sum_t = f32;
alias of_tokens = array<u32, 1>;

// Entry `j` of four entries of each token.
fn entry(four: array<vec4<act>, TOKENS>, j: u32) -> entry_t {
    return four[0][j];
}

// The sum of a block's activations. `starts`: where each token's begin.
fn block_total(starts: of_tokens, block: u32) -> sum_t {
    let pair = halves[starts[0] + block];
    return pair.x + pair.y;
}

fn of_token(sum: sum_t, t: u32) -> f32 {
    return sum;
}
