// Gradient of a bias of scores by distance: those of all scores that a bucket's bias was added to, summed on top of what is there.
// One workgroup: one head of one bucket; its lanes take a token each.
@group(0) @binding(0) var<storage, read> grad: array<f32>;             // (tokens of the call, heads, columns)
@group(0) @binding(1) var<storage, read> ends: array<u32>;             // (sequences) keys, or those before the first token
@group(0) @binding(2) var<storage, read> spans: array<vec2<u32>>;      // (buckets) first and last distance, from -reach on
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (buckets, heads)
#import params
override WORKGROUP: u32;
#import reduce

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    if index >= params.buckets * params.heads {
        return;
    }
    let head = index % params.heads;
    let span = spans[index / params.heads];
    let reach = params.reach;
    var sum = 0.0;
    for (var row = lane.index; row < params.tokens; row += WORKGROUP) {
        let token = params.token_start + row;
        let sequence = token / params.tokens_per_sequence;
        let order = token - sequence * params.tokens_per_sequence;
        let end = ends[sequence] + select(0u, order + 1u, params.causal == 1u);
        let count = i32(min(end - min(params.first, end), params.columns));
        let place = i32(select(order, end - 1u, params.causal == 1u));
        // The outermost distances stand for all beyond them.
        let zero = place - i32(params.first + reach);
        let low = select(max(zero + i32(span.x), 0), 0, span.x == 0u);
        let high = select(min(zero + i32(span.y) + 1, count), count, span.y == 2u * reach);
        let line = (row * params.heads + head) * params.columns;
        if span.x <= span.y {
            for (var i = low; i < high; i++) {
                sum += grad[line + u32(i)];
            }
        }
    }
    let total = reduce_sum(sum, lane);
    if lane.index == 0u {
        result[index] += total;
    }
}
