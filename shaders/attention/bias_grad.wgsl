// What 32 tokens of a sequence have of the gradient of a bias by distance: the sums of their scores' gradients, by the bucket that the
// distance from the token to the key falls into. One workgroup: one head of the tokens, and all keys they see, 64 at a time: scores'
// gradients, then the sum of each diagonal, whose keys are all as far from their tokens, then of each bucket's diagonals.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;          // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;            // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<vec4<act>>;          // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> grad: array<vec4<act>>;           // (all tokens, heads, head_dim)
@group(0) @binding(4) var<storage, read> lse_delta: array<vec2<f32>>;     // (all tokens, heads) log-sum-exp, product
@group(0) @binding(5) var<storage, read> places: array<u32>;               // (sequences) tokens before, or keys, (heads, distances) bits of biases
@group(0) @binding(6) var<storage, read> spans: array<vec2<u32>>;          // (buckets) first and last distance, from -reach on
@group(0) @binding(7) var<storage, read_write> result: array<f32>;         // (all tiles, row) of which (buckets, heads) are used
#import params
#import attention_tile

// A diagonal for every difference of a streamed row and an owner.
const DIAGONALS: u32 = STREAMED + OWNERS - 1u;

@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
#import attention_owners
    let mine = lane % 8u * 4u;
    let other = lane / 8u;
    let row = lane / 4u;
    var lse = vec4(0.0);
    var delta = vec4(0.0);
#for I in 4
    if mine + {I}u < count {
        let known = lse_delta[base + (mine + {I}u) * params.heads];
        lse[{I}] = known.x;
        delta[{I}] = known.y;
    }
#end
    let to = tile * params.row + head;
    for (var bucket = lane; bucket < params.buckets; bucket += LANES) {
        result[to + bucket * params.heads] = 0.0;
    }
    let place = last_seen(places[sequence], first);
    let first_own = own_place(places[sequence], first);
    let here = first_own + mine;
    let tokens = place + (mine + vec4(0u, 1u, 2u, 3u)) * params.causal;
    let exists = mine + vec4(0u, 1u, 2u, 3u) < vec4(count);
    let seen = place + 1u + (count - 1u) * params.causal;
    let reach = i32(params.distances / 2u);
    for (var start = first_seen(place); start < seen; start += STREAMED) {
        let present = min(STREAMED, seen - start);
#import attention_score_grads
        // A key behind the token wraps around.
#for J in 4
        scores[{J}] = select(vec4(0.0), scores[{J}], exists & (tokens - vec4(start + other + {J}u * 16u) < vec4(params.window)));
#end
        keep_factors(scores, lane);
        workgroupBarrier();
        var diagonal = 0.0;
        for (var i = 0u; i < OWNERS; i++) {
            // Before the first streamed row this wraps around.
            let k = lane + i - (OWNERS - 1u);
            if k < STREAMED {
                diagonal += memory[k * 8u + i / 4u][i % 4u];
            }
        }
        memory[ROWS + lane] = vec4(diagonal);
        workgroupBarrier();
        // The first diagonal's place among the distances. The outermost distances stand for all beyond them.
        let zero = i32(start) - i32(first_own) - i32(OWNERS - 1u) + reach;
        for (var bucket = lane; bucket < params.buckets; bucket += LANES) {
            let span = spans[bucket];
            let low = select(max(i32(span.x) - zero, 0), 0, span.x == 0u);
            let high = select(min(i32(span.y) + 1 - zero, i32(DIAGONALS)), i32(DIAGONALS), span.y == 2u * u32(reach));
            var sum = 0.0;
            if span.x <= span.y {
                for (var i = low; i < high; i++) {
                    sum += memory[ROWS + u32(i)].x;
                }
            }
            result[to + bucket * params.heads] += sum;
        }
        workgroupBarrier();
    }
}
