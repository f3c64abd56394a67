// The gradients of attention's keys and values that one query head has a part in. One workgroup: 32 places of a
// sequence's cache beside one query head, and all tokens that see them, 64 at a time: products in steps of 16 columns, then
// sums over the tokens. Heads of a group are added up afterwards, so that few key-value heads fill a device.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;              // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;                // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<vec4<act>>;              // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> grad: array<vec4<act>>;               // (all tokens, heads, head_dim)
@group(0) @binding(4) var<storage, read> lse_delta: array<vec2<f32>>;         // (all tokens, heads) log-sum-exp, product
@group(0) @binding(5) var<storage, read> places: array<u32>;                   // (sequences) tokens before, or keys, (heads, distances) bits of biases
@group(0) @binding(6) var<storage, read_write> key_grad: array<vec4<out_t>>;   // (sequences, capacity, heads, head_dim)
@group(0) @binding(7) var<storage, read_write> value_grad: array<vec4<out_t>>; // (sequences, capacity, heads, head_dim)
#import params
#import attention_tile

// The rows at hand, from token `begin` on, to the sums of the four keys that they see, the first of which is at `own`.
fn add_tokens(begin: u32, present: u32, own: i32, lane: u32, sums: ptr<function, array<vec4<f32>, SUMS>>) {
    let end = min(begin + ROWS_AT_ONCE, present);
    // From here on, in fours, not every key's window holds a token.
    let whole = own + i32(params.window & ~3u);
    if own >= i32(begin) && own < i32(begin + ROWS_AT_ONCE) && own < whole {
        let t = u32(own);
        add_row(t, t - begin, lane, vec4(true, false, false, false), sums);
        add_row(t + 1u, t + 1u - begin, lane, vec4(true, true, false, false), sums);
        add_row(t + 2u, t + 2u - begin, lane, vec4(true, true, true, false), sums);
        add_row(t + 3u, t + 3u - begin, lane, vec4(true), sums);
    }
    for (var t = u32(max(own + 4, i32(begin))); t < end && i32(t) < whole; t += 4u) {
        add_rows(t, t - begin, lane, sums);
    }
    for (var t = max(whole, i32(begin)); t < min(i32(end), own + 3 + i32(params.window)); t++) {
        // Key i is i places later than the first.
        let seen = vec4<u32>(vec4(t - own) - vec4(0, 1, 2, 3)) < vec4(params.window);
        add_row(u32(t), u32(t) - begin, lane, seen, sums);
    }
}

@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    if index >= params.tiles * params.heads {
        return;
    }
    let tile = params.tile_start + index / params.heads;
    let head = index % params.heads;
    let kv_head = head / (params.heads / params.kv_heads);
    let sequence = tile % params.sequences;
    // The first tiles are seen by most tokens, and go first.
    let first = tile / params.sequences * OWNERS;
    let count = min(OWNERS, params.capacity - first);
    let tokens = params.tokens_per_sequence;
    let causal = params.causal == 1u;
    // Keys of the tile that are there; the places behind them may hold anything.
    let written = u32(clamp(i32(select(places[sequence], tokens, causal)) - i32(first), 0, i32(count)));
    // The first token that sees a key of the tile, and the place behind the last: all do, or those whose window holds one.
    let begins = select(0u, first, causal);
    let seen = select(select(0u, tokens, written > 0u), min(tokens, first + OWNERS - 1u + params.window), causal);
    let fours = params.head_dim / 4u;
    let pitch = params.kv_heads * fours;
    let cache = (sequence * params.capacity + first) * pitch + kv_head * fours;
    let mine = lane % 8u * 4u;
    let other = lane / 8u;
    let row = lane / 4u;
    var key_sums: array<vec4<f32>, SUMS>;
    var value_sums: array<vec4<f32>, SUMS>;
    for (var start = begins; start < seen; start += STREAMED) {
        let present = min(STREAMED, seen - start);
        let base = (sequence * tokens + start) * params.heads + head;
        var scores = mat4x4<f32>();
        var weight_grads = mat4x4<f32>();
        for (var step = 0u; step < fours; step += 4u) {
            let four = step + lane % 4u;
            var keyed = vec4(0.0);
            var valued = vec4(0.0);
            if row < written && four < fours {
                let at = cache + row * pitch + four;
                keyed = vec4<f32>(key[at]) * params.scale;
                valued = vec4<f32>(value[at]);
            }
            memory[OWNERS_FIRST + owner_place(row) + lane % 4u] = keyed;
            memory[OWNERS_SECOND + owner_place(row) + lane % 4u] = valued;
#for N in 2
            {
                let its = row + {N}u * 32u;
                var queried = vec4(0.0);
                var graded = vec4(0.0);
                if its < present && four < fours {
                    let at = (base + its * params.heads) * fours + four;
                    queried = vec4<f32>(query[at]);
                    graded = vec4<f32>(grad[at]);
                }
                memory[STREAMED_FIRST + its * PITCH + lane % 4u] = queried;
                memory[STREAMED_SECOND + its * PITCH + lane % 4u] = graded;
            }
#end
            workgroupBarrier();
            scores = with_products(scores, OWNERS_FIRST, STREAMED_FIRST, lane);
            weight_grads = with_products(weight_grads, OWNERS_SECOND, STREAMED_SECOND, lane);
            workgroupBarrier();
        }
        if params.distances > 0u {
#for J in 4
#for I in 4
            scores[{J}][{I}] += score_bias(head, first + mine + {I}u, start + other + {J}u * 16u);
#end
#end
        }
        scores = with_soft_cap(scores);
        // Four tokens are added at a time: those behind the last count as zero.
#for J in 4
        if other + {J}u * 16u < present {
            let known = lse_delta[base + (other + {J}u * 16u) * params.heads];
            let slopes = soft_cap_slopes(scores[{J}]);
            scores[{J}] = exponentials(scores[{J}] - known.x);
            weight_grads[{J}] = scores[{J}] * (weight_grads[{J}] - known.y) * slopes;
        } else {
            scores[{J}] = vec4(0.0);
            weight_grads[{J}] = vec4(0.0);
        }
#end
        // This invocation's first key is seen by the token at its place and a window of those behind, each other one later; or all
        // are by every token.
        let own = select(-4, i32(first + mine) - i32(start), causal);
        keep_factors(scores, lane);
        for (var begin = 0u; begin < present; begin += ROWS_AT_ONCE) {
#for N in 4
            {
                let place = lane + {N}u * LANES;
                let t = begin + place / FOURS;
                let four = place % FOURS;
                var values = vec4(0.0);
                if t < present && four < fours {
                    values = vec4<f32>(grad[(base + t * params.heads) * fours + four]);
                }
                memory[ROWS + place] = values;
            }
#end
            workgroupBarrier();
            add_tokens(begin, present, own, lane, &value_sums);
            workgroupBarrier();
        }
        keep_factors(weight_grads, lane);
        for (var begin = 0u; begin < present; begin += ROWS_AT_ONCE) {
#for N in 4
            {
                let place = lane + {N}u * LANES;
                let t = begin + place / FOURS;
                let four = place % FOURS;
                var values = vec4(0.0);
                if t < present && four < fours {
                    values = vec4<f32>(query[(base + t * params.heads) * fours + four]);
                }
                memory[ROWS + place] = values;
            }
#end
            workgroupBarrier();
            add_tokens(begin, present, own, lane, &key_sums);
            workgroupBarrier();
        }
    }
    // Behind the tokens there are zeros.
#for I in 4
    if mine + {I}u < count {
        let place = sequence * params.capacity + first + mine + {I}u;
        let at = (place * params.heads + head) * fours;
#for C in CHUNKS
        if other + {C}u * 16u < fours {
            let of_key = key_sums[{I}u * CHUNKS + {C}u] * params.scale;
            let of_value = value_sums[{I}u * CHUNKS + {C}u];
            key_grad[at + other + {C}u * 16u] = vec4<out_t>(select(vec4(0.0), of_key, mine + {I}u < written));
            value_grad[at + other + {C}u * 16u] = vec4<out_t>(select(vec4(0.0), of_value, mine + {I}u < written));
        }
#end
    }
#end
}
