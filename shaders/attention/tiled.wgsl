// Attention of many tokens at once, causal or of all keys, with grouped key-value heads over a cache and a running softmax. One
// workgroup: one head of 32 tokens of a sequence, and all keys they see, 64 at a time: scores in steps of 32 columns, then sums
// over the keys.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;          // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;            // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<vec4<act>>;          // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> past: array<u32>;                 // (sequences) tokens seen before, or keys
@group(0) @binding(4) var<storage, read> places: array<u32>;               // (sequences) of no use, (heads, distances) bits of biases
@group(0) @binding(5) var<storage, read_write> result: array<vec4<out_t>>; // (all tokens, heads, head_dim)
@group(0) @binding(6) var<storage, read_write> lse_delta: array<vec2<f32>>; // (all tokens, heads) log-sum-exp of the scores, left alone
#import params
#import attention_tile

const NOTHING: f32 = -3.0e38;

@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
#import attention_owners
    let mine = lane % 8u * 4u;
    let other = lane / 8u;
    let row = lane / 4u;
    // The last key that each of this invocation's tokens sees.
    let place = last_seen(past[sequence], first);
    let own_last = place + mine * params.causal;
    let tokens = own_last + vec4(0u, 1u, 2u, 3u) * params.causal;
    // The first of them.
    let here = own_place(past[sequence], first) + mine;
    var maxima = vec4(NOTHING);
    // Of this invocation's keys.
    var totals = vec4(0.0);
    var sums: array<vec4<f32>, SUMS>;
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
        memory[lane] = highest;
        workgroupBarrier();
        for (var part = 0u; part < 16u; part++) {
            highest = max(highest, memory[part * 8u + lane % 8u]);
        }
        workgroupBarrier();
        let correction = exp(maxima - highest);
        maxima = highest;
        totals *= correction;
#for I in 4
#for C in CHUNKS
        sums[{I}u * CHUNKS + {C}u] *= correction[{I}];
#end
#end
        // NaN scores never win the maximum above; let them through here.
#for J in 4
        scores[{J}] = select(vec4(0.0), exponentials(scores[{J}] - highest), sees{J});
        totals += scores[{J}];
#end
        keep_factors(scores, lane);
        // The last key that the first of this invocation's tokens sees, and the first: each other token's are one behind, or the same.
        let own = i32(own_last) - i32(start);
        let low = own + 1 - i32(params.window);
        for (var begin = 0u; begin < present; begin += ROWS_AT_ONCE) {
#for N in 4
            {
                let at = lane + {N}u * LANES;
                let k = begin + at / FOURS;
                let four = at % FOURS;
                if k < present && four < fours {
                    memory[ROWS + at] = vec4<f32>(value[cache + (start + k) * pitch + four]);
                }
            }
#end
            workgroupBarrier();
#import attention_add_keys
            workgroupBarrier();
        }
    }
    memory[lane] = totals;
    workgroupBarrier();
    totals = vec4(0.0);
    for (var part = 0u; part < 16u; part++) {
        totals += memory[part * 8u + lane % 8u];
    }
#for I in 4
    if mine + {I}u < count {
        let at = (base + (mine + {I}u) * params.heads) * fours;
        if other == 0u {
            let lse = maxima[{I}] + log(totals[{I}]);
            lse_delta[base + (mine + {I}u) * params.heads].x = select(lse, totals[{I}], is_nan(totals[{I}]));
        }
#for C in CHUNKS
        if other + {C}u * 16u < fours {
            result[at + other + {C}u * 16u] = vec4<out_t>(sums[{I}u * CHUNKS + {C}u] / totals[{I}]);
        }
#end
    }
#end
}
