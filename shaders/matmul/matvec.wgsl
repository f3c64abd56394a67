// Product with few tokens: bound by reading the weight. One workgroup: one weight row, TOKENS tokens.
#import matmul_bindings
override WORKGROUP: u32;
#import weight
#import reduce

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let block = index / params.rows;
    let row = index - block * params.rows;
    let first = block * TOKENS;
    if first >= params.tokens {
        return;
    }
    var sums: array<f32, TOKENS>;
    for (var column = lane.index * 4u; column < params.columns; column += WORKGROUP * 4u) {
        let weights = weight4(params.row_start + row, column);
        for (var t = 0u; t < TOKENS; t++) {
            if first + t < params.tokens {
                sums[t] += dot(weights, x4(first + t, column));
            }
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        let sum = reduce_sum(sums[t], lane);
        if lane.index == 0u && first + t < params.tokens {
            store_result(first + t, row, sum);
        }
    }
}
