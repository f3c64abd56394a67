// Product with few tokens: bound by reading the weight. One workgroup: ROWS weight rows, TOKENS tokens; one invocation:
// eight columns at a time, so that 16-bit weights come in loads of 16 bytes, of ROWS rows at once.
#import matmul_bindings
#import weight
#import prepare
const SUMS: u32 = ROWS * TOKENS;
#import reduce_each

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    prepare_levels(lane.index, WORKGROUP);
    let index = group.y * groups.x + group.x;
    let row_blocks = (params.rows + ROWS - 1u) / ROWS;
    let token_block = index / row_blocks;
    let first_row = (index - token_block * row_blocks) * ROWS;
    let first_token = token_block * TOKENS;
    if first_token >= params.tokens {
        return;
    }
    var sums: array<f32, SUMS>;
    for (var column = lane.index * 8u; column < params.columns; column += WORKGROUP * 8u) {
        // Behind the end of a row stand another row's scales.
        let more = column + 4u < params.columns;
        var low: array<vec4<f32>, ROWS>;
        var high: array<vec4<f32>, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            let row = params.row_start + min(first_row + r, params.rows - 1u);
#import eight_weights
        }
        for (var t = 0u; t < TOKENS; t++) {
            let token = min(first_token + t, params.tokens - 1u);
            let x_low = x4(token, column);
            var x_high = vec4(0.0);
            if more {
                x_high = x4(token, column + 4u);
            }
            for (var r = 0u; r < ROWS; r++) {
                sums[t * ROWS + r] += dot(low[r], x_low) + dot(high[r], x_high);
            }
        }
    }
    let total = reduce_each(sums, lane);
    let token = first_token + lane.index / ROWS;
    let row = first_row + lane.index % ROWS;
    if lane.index < SUMS && token < params.tokens && row < params.rows {
        store_result(token, row, total);
    }
}
