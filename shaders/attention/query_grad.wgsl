// The gradient of attention's queries. One workgroup: one head of 32 tokens of a sequence, and all keys they see,
// 64 at a time: products in steps of 16 columns, then sums over the keys.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;          // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;            // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<vec4<act>>;          // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> grad: array<vec4<act>>;           // (all tokens, heads, head_dim)
@group(0) @binding(4) var<storage, read> lse_delta: array<vec2<f32>>;     // (all tokens, heads) log-sum-exp, product
@group(0) @binding(5) var<storage, read> places: array<u32>;               // (sequences) tokens before, or keys, (heads, distances) bits of biases
@group(0) @binding(6) var<storage, read_write> result: array<vec4<out_t>>; // (all tokens, heads, head_dim)
#import params
#import attention_tile

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
    var sums: array<vec4<f32>, SUMS>;
    let place = last_seen(places[sequence], first);
    let here = own_place(places[sequence], first) + mine;
    let seen = place + 1u + (count - 1u) * params.causal;
    for (var start = first_seen(place); start < seen; start += STREAMED) {
        let present = min(STREAMED, seen - start);
#import attention_score_grads
        keep_factors(scores, lane);
        // The last key that the first of this invocation's tokens sees, and the first: each other token's are one behind. Where all keys
        // are seen there are no more at hand than that.
        let own = i32(place + mine) - i32(start);
        let low = own + 1 - i32(params.window);
        for (var begin = 0u; begin < present; begin += ROWS_AT_ONCE) {
#for N in 4
            {
                let at = lane + {N}u * LANES;
                let k = begin + at / FOURS;
                let four = at % FOURS;
                if k < present && four < fours {
                    memory[ROWS + at] = vec4<f32>(key[cache + (start + k) * pitch + four]);
                }
            }
#end
            workgroupBarrier();
#import attention_add_keys
            workgroupBarrier();
        }
    }
#for I in 4
    if mine + {I}u < count {
        let at = (base + (mine + {I}u) * params.heads) * fours;
#for C in CHUNKS
        if other + {C}u * 16u < fours {
            result[at + other + {C}u * 16u] = vec4<out_t>(sums[{I}u * CHUNKS + {C}u] * params.scale);
        }
#end
    }
#end
}
