// The softmax's weights of attention, with a bias of scores by how far a key is from the token. One workgroup: one head of one
// token; its lanes take a key each.
@group(0) @binding(0) var<storage, read> query: array<act>;            // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<act>;              // (sequences, capacity, heads, head_dim)
@group(0) @binding(2) var<storage, read> ends: array<u32>;             // (sequences) keys, or those before the first token
@group(0) @binding(3) var<storage, read> table: array<f32>;            // (buckets, heads)
@group(0) @binding(4) var<storage, read> bucket: array<u32>;           // (2 reach + 1) of each distance from -reach to reach
@group(0) @binding(5) var<storage, read_write> result: array<f32>;     // (tokens of the call, heads, columns)
#import params
override WORKGROUP: u32;
#import reduce

const MAX_HEAD_DIM: u32 = 256u;
var<workgroup> scaled_query: array<f32, MAX_HEAD_DIM>;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
#import attention_row
    for (var column = lane.index; column < params.head_dim; column += WORKGROUP) {
        scaled_query[column] = f32(query[own + column]) * params.scale;
    }
    workgroupBarrier();
    let place = i32(select(order, end - 1u, params.causal == 1u));
    let reach = i32(params.reach);
    var maximum = -3.0e38;
    for (var i = lane.index; i < count; i += WORKGROUP) {
        let at = keys + i * pitch;
        var score = 0.0;
        for (var column = 0u; column < params.head_dim; column++) {
            score += scaled_query[column] * f32(key[at + column]);
        }
        if params.biased == 1u {
            let distance = i32(params.first + i) - place;
            score += table[bucket[u32(clamp(distance, -reach, reach) + reach)] * params.heads + head];
        }
        result[line + i] = score;
        maximum = max(maximum, score);
    }
    let most = reduce_max(maximum, lane);
    var sum = 0.0;
    for (var i = lane.index; i < count; i += WORKGROUP) {
        // A score that is NaN is not among those that the maximum was taken of, and goes through here.
        let weight = exp(result[line + i] - most);
        result[line + i] = weight;
        sum += weight;
    }
    let total = reduce_sum(sum, lane);
    for (var i = lane.index; i < params.columns; i += WORKGROUP) {
        var weight = 0.0;
        if i < count {
            weight = result[line + i] / total;
        }
        result[line + i] = weight;
    }
}
