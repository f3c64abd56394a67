// The gradient of causal attention's queries. One workgroup: one head of 32 tokens of a sequence, and all keys they see,
// 64 at a time: products in steps of 16 columns, then sums over the keys.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;          // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;            // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<vec4<act>>;          // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> grad: array<vec4<act>>;           // (all tokens, heads, head_dim)
@group(0) @binding(4) var<storage, read> lse_delta: array<vec2<f32>>;     // (all tokens, heads) log-sum-exp, product
@group(0) @binding(5) var<storage, read_write> result: array<vec4<out_t>>; // (all tokens, heads, head_dim)
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
    let seen = first + count;
    for (var start = first_seen(first); start < seen; start += STREAMED) {
        let present = min(STREAMED, seen - start);
        var scores = mat4x4<f32>();
        var weight_grads = mat4x4<f32>();
        for (var step = 0u; step < fours; step += 4u) {
            let four = step + lane % 4u;
            var queried = vec4(0.0);
            var graded = vec4(0.0);
            if row < count && four < fours {
                let at = (base + row * params.heads) * fours + four;
                queried = vec4<f32>(query[at]) * params.scale;
                graded = vec4<f32>(grad[at]);
            }
            memory[OWNERS_FIRST + owner_place(row) + lane % 4u] = queried;
            memory[OWNERS_SECOND + owner_place(row) + lane % 4u] = graded;
#for N in 2
            {
                let its = row + {N}u * 32u;
                var keyed = vec4(0.0);
                var valued = vec4(0.0);
                if its < present && four < fours {
                    let at = cache + (start + its) * pitch + four;
                    keyed = vec4<f32>(key[at]);
                    valued = vec4<f32>(value[at]);
                }
                memory[STREAMED_FIRST + its * PITCH + lane % 4u] = keyed;
                memory[STREAMED_SECOND + its * PITCH + lane % 4u] = valued;
            }
#end
            workgroupBarrier();
            scores = with_products(scores, OWNERS_FIRST, STREAMED_FIRST, lane);
            weight_grads = with_products(weight_grads, OWNERS_SECOND, STREAMED_SECOND, lane);
            workgroupBarrier();
        }
        scores = with_soft_cap(scores);
#for J in 4
        scores[{J}] = exponentials(scores[{J}] - lse) * (weight_grads[{J}] - delta) * soft_cap_slopes(scores[{J}]);
#end
        keep_factors(scores, lane);
        // The last key that the first of this invocation's tokens sees, and the first: each other token's are one behind.
        let own = i32(first + mine) - i32(start);
        let low = own + 1 - i32(params.window);
        // From here on, in fours, all see all keys up to `own`.
        let whole = (low + 6) & ~3;
        for (var begin = 0u; begin < present; begin += ROWS_AT_ONCE) {
#for N in 4
            {
                let place = lane + {N}u * LANES;
                let k = begin + place / FOURS;
                let four = place % FOURS;
                if k < present && four < fours {
                    memory[ROWS + place] = vec4<f32>(key[cache + (start + k) * pitch + four]);
                }
            }
#end
            workgroupBarrier();
            var k = u32(max(i32(begin), low));
            for (; k < begin + ROWS_AT_ONCE && i32(k) < min(whole, own + 4); k++) {
                add_row(k, k - begin, lane, seen_by(own - i32(k)), &sums);
            }
            for (; k < begin + ROWS_AT_ONCE && i32(k) < own; k += 4u) {
                add_rows(k, k - begin, lane, &sums);
            }
            if i32(k) == own && k < begin + ROWS_AT_ONCE {
                add_row(k, k - begin, lane, vec4(true), &sums);
                add_row(k + 1u, k + 1u - begin, lane, vec4(false, true, true, true), &sums);
                add_row(k + 2u, k + 2u - begin, lane, vec4(false, false, true, true), &sums);
                add_row(k + 3u, k + 3u - begin, lane, vec4(false, false, false, true), &sums);
            }
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
