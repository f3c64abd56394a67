// Attention with grouped key-value heads over a cache, causal or of all keys, with a running softmax. One workgroup: one head of
// one token; its lanes take one key each for the scores, then one column each for the weighted sum.
@group(0) @binding(0) var<storage, read> query: array<act>;            // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<act>;              // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<act>;            // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> past: array<u32>;             // (sequences) tokens seen before, or keys
@group(0) @binding(4) var<storage, read> places: array<u32>;           // (sequences) of no use, (heads, distances) bits of biases
@group(0) @binding(5) var<storage, read_write> result: array<out_t>;   // (all tokens, heads, head_dim)
#import params
override WORKGROUP: u32;
#import reduce
#import soft_cap
#import attention_seen

const MAX_HEAD_DIM: u32 = 256u;
var<workgroup> scaled_query: array<f32, MAX_HEAD_DIM>;
var<workgroup> weights: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    if index >= params.tokens * params.heads {
        return;
    }
    let token = params.token_start + index / params.heads;
    let head = index % params.heads;
    let sequence = token / params.tokens_per_sequence;
    let order = token - sequence * params.tokens_per_sequence;
    // Behind the last key that it sees.
    let end = last_seen(past[sequence], order) + 1u;
    let own = own_place(past[sequence], order);
    let pitch = params.kv_heads * params.head_dim;
    let kv_head = head / (params.heads / params.kv_heads);
    let cache = (sequence * params.capacity + params.first) * pitch + kv_head * params.head_dim;
    let query_base = (token * params.heads + head) * params.head_dim;
    for (var column = lane.index; column < params.head_dim; column += WORKGROUP) {
        scaled_query[column] = f32(query[query_base + column]) * params.scale;
    }
    workgroupBarrier();
    // Columns lane, lane + WORKGROUP, ... of the weighted sum.
    var sums: array<f32, 8>;
    var maximum = -3.0e38;
    var total = 0.0;
    for (var start = end - min(params.window, end); start < end; start += WORKGROUP) {
        let mine = start + lane.index;
        var score = -3.0e38;
        if mine < end {
            let at = cache + mine * pitch;
            score = 0.0;
            for (var column = 0u; column < params.head_dim; column++) {
                score += scaled_query[column] * f32(key[at + column]);
            }
            if params.distances > 0u {
                score += score_bias(head, mine, own);
            }
            if params.soft_cap > 0.0 {
                score = soft_capped(score, params.soft_cap);
            }
        }
        let new_maximum = max(maximum, reduce_max(score, lane));
        let weight = select(0.0, exp(score - new_maximum), mine < end);
        weights[lane.index] = weight;
        // The reduction's barriers also make the weights visible to every lane.
        let tile_total = reduce_sum(weight, lane);
        let correction = exp(maximum - new_maximum);
        total = total * correction + tile_total;
        maximum = new_maximum;
        let count = min(WORKGROUP, end - start);
        var slot = 0u;
        for (var column = lane.index; column < params.head_dim; column += WORKGROUP) {
            var sum = sums[slot] * correction;
            for (var i = 0u; i < count; i++) {
                sum += weights[i] * f32(value[cache + (start + i) * pitch + column]);
            }
            sums[slot] = sum;
            slot++;
        }
        // Before the reductions overwrite what other lanes still read. Theirs would do, but NVIDIA's OpenGL loses a barrier
        // that opens a loop.
        workgroupBarrier();
    }
    var slot = 0u;
    for (var mine = lane.index; mine < params.head_dim; mine += WORKGROUP) {
        result[query_base + mine] = out_t(sums[slot] / total);
        slot++;
    }
}
