// Gradient of attention at its scores, from that of its result: weight * (product - sum of all weights * products), where a
// product is that of the result's gradient and the key's value. One workgroup: one head of one token; its lanes take a key each.
@group(0) @binding(0) var<storage, read> weights: array<f32>;          // (tokens of the call, heads, columns)
@group(0) @binding(1) var<storage, read> value: array<f32>;            // (sequences, capacity, heads, head_dim)
@group(0) @binding(2) var<storage, read> ends: array<u32>;             // (sequences) keys, or those before the first token
@group(0) @binding(3) var<storage, read> grad: array<f32>;             // (all tokens, heads, head_dim)
@group(0) @binding(4) var<storage, read_write> result: array<f32>;     // (tokens of the call, heads, columns)
#import params
override WORKGROUP: u32;
#import reduce

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
#import attention_row
    var sum = 0.0;
    for (var i = lane.index; i < count; i += WORKGROUP) {
        let at = keys + i * pitch;
        var product = 0.0;
        for (var column = 0u; column < params.head_dim; column++) {
            product += grad[own + column] * value[at + column];
        }
        result[line + i] = product;
        sum += weights[line + i] * product;
    }
    let total = reduce_sum(sum, lane);
    for (var i = lane.index; i < params.columns; i += WORKGROUP) {
        var of_score = 0.0;
        if i < count {
            of_score = weights[line + i] * (result[line + i] - total);
        }
        result[line + i] = of_score;
    }
}
