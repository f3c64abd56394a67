// What attention's backward kernels need of each token and head: the log-sum-exp of its scores, and the dot product of its
// result and that result's gradient. One workgroup: one head of 32 tokens of a sequence, and all keys they see, 64 at a time,
// in steps of 32 columns.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;                // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;                  // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> result: array<vec4<out_t>>;             // (all tokens, heads, head_dim)
@group(0) @binding(3) var<storage, read> grad: array<vec4<act>>;                 // (all tokens, heads, head_dim)
@group(0) @binding(4) var<storage, read> places: array<u32>;                     // (sequences) tokens before, or keys, (heads, distances) bits of biases
@group(0) @binding(5) var<storage, read_write> lse_delta: array<vec2<f32>>;     // (all tokens, heads) log-sum-exp, product
#import params
#import attention_tile

const NOTHING: f32 = -3.0e38;

@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
#import attention_owners
    let mine = lane % 8u * 4u;
    let place = last_seen(places[sequence], first);
    let tokens = place + (mine + vec4(0u, 1u, 2u, 3u)) * params.causal;
    let here = own_place(places[sequence], first) + mine;
    let other = lane / 8u;
    let row = lane / 4u;
    // Of this invocation's keys, for each of its tokens: the highest score, and the sum of the exponentials below it.
    var maxima = vec4(NOTHING);
    var totals = vec4(0.0);
    let seen = place + 1u + (count - 1u) * params.causal;
    for (var start = first_seen(place); start < seen; start += STREAMED) {
        let present = min(STREAMED, seen - start);
#import attention_scores
        var highest = maxima;
#for J in 4
        // A key behind the token wraps around.
        let sees{J} = tokens - vec4(start + other + {J}u * 16u) < vec4(params.window);
        highest = select(highest, scores[{J}], sees{J} & (scores[{J}] > highest));
#end
        totals *= exp(maxima - highest);
        maxima = highest;
        // NaN scores never win the maximum above; let them through here.
#for J in 4
        totals += select(vec4(0.0), exponentials(scores[{J}] - highest), sees{J});
#end
    }
    memory[lane] = maxima;
    memory[128u + lane] = totals;
    var product = 0.0;
    if row < count {
        let at = (base + row * params.heads) * fours;
        for (var four = lane % 4u; four < fours; four += 4u) {
            product += dot(vec4<f32>(result[at + four]), vec4<f32>(grad[at + four]));
        }
    }
    memory[256u + lane] = vec4(product);
    workgroupBarrier();
    if lane < 8u {
        var maximum = vec4(NOTHING);
        for (var part = 0u; part < 16u; part++) {
            maximum = max(maximum, memory[part * 8u + lane]);
        }
        var total = vec4(0.0);
        for (var part = 0u; part < 16u; part++) {
            total += memory[128u + part * 8u + lane] * exp(memory[part * 8u + lane] - maximum);
        }
        let lse = maximum + log(total);
#for I in 4
        if lane * 4u + {I}u < count {
            let at = 256u + (lane * 4u + {I}u) * 4u;
            let delta = (memory[at].x + memory[at + 1u].x) + (memory[at + 2u].x + memory[at + 3u].x);
            let its = select(lse[{I}], total[{I}], is_nan(total[{I}]));
            lse_delta[base + (lane * 4u + {I}u) * params.heads] = vec2(its, delta);
        }
#end
    }
}
