// The gradients of attention's keys and values that one query head has a part in, by cooperative matrices. One
// workgroup: OWNERS places of a sequence's cache beside one query head, 64 columns of the gradients, and all tokens that see
// the places, STREAMED at a time: two products over all columns, then sums over the tokens. Needs subgroups of SUBGROUP lanes.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;              // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;                // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<vec4<act>>;              // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> grad: array<vec4<act>>;               // (all tokens, heads, head_dim)
@group(0) @binding(4) var<storage, read> lse_delta: array<vec2<f32>>;         // (all tokens, heads) log-sum-exp, product
@group(0) @binding(5) var<storage, read> places: array<u32>;                   // (sequences) tokens before, or keys, (heads, distances) bits of biases
@group(0) @binding(6) var<storage, read_write> key_grad: array<vec4<out_t>>;   // (sequences, capacity, heads, head_dim)
@group(0) @binding(7) var<storage, read_write> value_grad: array<vec4<out_t>>; // (sequences, capacity, heads, head_dim)
#import params
#import attention_coop

// Columns of the gradients that a workgroup has: registers hold no more.
const SHARE: u32 = 64u;
// Blocks of four tokens by four columns: tokens go fastest, then columns; first of all queries, then of all gradients.
const TOKEN_FOURS: u32 = STREAMED / 4u;
var<workgroup> query_tile: array<vec4<f16>, STREAMED * PITCH>;     // (STREAMED tokens, DIM columns)
var<workgroup> grad_tile: array<vec4<f16>, STREAMED * PITCH>;      // (STREAMED tokens, DIM columns)
var<workgroup> query_columns: array<vec4<f16>, SHARE * ACROSS>;    // (SHARE columns, STREAMED tokens)
var<workgroup> grad_columns: array<vec4<f16>, SHARE * ACROSS>;     // (SHARE columns, STREAMED tokens)

// Four columns of a token's query, or of its gradient in the second half of the blocks; zeros behind the last of either.
fn streamed_token(block: u32, start: u32, seen: u32, r: u32, base: u32) -> vec4<f16> {
    let fours = params.head_dim / 4u;
    let four = block / TOKEN_FOURS % FOURS;
    let token = start + block % TOKEN_FOURS * 4u + r;
    if token >= seen || four >= fours {
        return vec4<f16>();
    }
    let at = (base + token * params.heads) * fours + four;
    if block < TOKEN_FOURS * FOURS {
        return query[at];
    }
    return grad[at];
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) subgroup: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    if index >= params.tiles * params.heads * SHARES {
        return;
    }
    let tile = params.tile_start + index / (params.heads * SHARES);
    let head = index / SHARES % params.heads;
    let share = index % SHARES;
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
    let base = sequence * tokens * params.heads + head;
    let own = subgroup * COOP;
    // What an invocation does alone need not be for its own subgroup.
    let part = lane / SUBGROUP * COOP;
    let column = lane % COOP;
    let half = lane % SUBGROUP / COOP;
    let scratch_pitch = SCRATCH;
    let corner = own * SCRATCH;
    let beside = corner + COOP;
    // The keys and values, as many columns at a time as a matrix has, through the queries' place.
#for i in COLS
    workgroupBarrier();
#for n in 2
    {
        let at = lane + {n}u * THREADS;
        let four = {i}u * (COOP / 4u) + at % 4u;
        var keyed = vec4<f16>();
        if at / 4u < written && four < fours {
            keyed = key[cache + at / 4u * pitch + four];
        }
        query_columns[at / 4u * NARROW + at % 4u] = keyed;
    }
#end
    workgroupBarrier();
    let keys{i} = coopLoadT<coop_a>(&query_columns[own * NARROW], NARROW);
    workgroupBarrier();
#for n in 2
    {
        let at = lane + {n}u * THREADS;
        let four = {i}u * (COOP / 4u) + at % 4u;
        var valued = vec4<f16>();
        if at / 4u < written && four < fours {
            valued = value[cache + at / 4u * pitch + four];
        }
        query_columns[at / 4u * NARROW + at % 4u] = valued;
    }
#end
    workgroupBarrier();
    let values{i} = coopLoadT<coop_a>(&query_columns[own * NARROW], NARROW);
#end
#for c in 4
    var key_sums{c} = coop_c();
    var value_sums{c} = coop_c();
#end
#for n in BLOCKS
#for r in 4
    var next{n}_{r} = streamed_token(lane + {n}u * THREADS, begins, seen, {r}u, base);
#end
#end
    for (var start = begins; start < seen; start += STREAMED) {
        workgroupBarrier();
#for n in BLOCKS
        {
            let block = lane + {n}u * THREADS;
            let four = block / TOKEN_FOURS % FOURS;
            let its = block % TOKEN_FOURS;
            // Behind the share's columns, or before them, this wraps around.
            let mine = four - share * (SHARE / 4u);
            if block < TOKEN_FOURS * FOURS {
#for r in 4
                query_tile[(its * 4u + {r}u) * PITCH + four] = next{n}_{r};
#end
                if mine < SHARE / 4u {
#for r in 4
                    query_columns[(mine * 4u + {r}u) * ACROSS + its] = vec4(next{n}_0[{r}], next{n}_1[{r}], next{n}_2[{r}], next{n}_3[{r}]);
#end
                }
            } else {
#for r in 4
                grad_tile[(its * 4u + {r}u) * PITCH + four] = next{n}_{r};
#end
                if mine < SHARE / 4u {
#for r in 4
                    grad_columns[(mine * 4u + {r}u) * ACROSS + its] = vec4(next{n}_0[{r}], next{n}_1[{r}], next{n}_2[{r}], next{n}_3[{r}]);
#end
                }
            }
        }
#end
        workgroupBarrier();
#for n in BLOCKS
#for r in 4
        next{n}_{r} = streamed_token(lane + {n}u * THREADS, start + STREAMED, seen, {r}u, base);
#end
#end
#for s in STRIPS
        {
            // This invocation's token.
            let token = start + {s}u * COOP + column;
            var known = vec2(0.0);
            if token < seen {
                known = lse_delta[base + token * params.heads];
            }
            var scores = coop_c();
            var weight_grads = coop_c();
#for i in COLS
            let queries{i} = coopLoad<coop_b>(&query_tile[{s}u * COOP * PITCH + {i}u * (COOP / 4u)], PITCH);
            scores = coopMultiplyAdd(keys{i}, queries{i}, scores);
            let grads{i} = coopLoad<coop_b>(&grad_tile[{s}u * COOP * PITCH + {i}u * (COOP / 4u)], PITCH);
            weight_grads = coopMultiplyAdd(values{i}, grads{i}, weight_grads);
#end
            coopStoreT(scores, &scratch[corner], scratch_pitch);
            coopStoreT(weight_grads, &scratch[beside], scratch_pitch);
            workgroupBarrier();
#for J in 8
            let row{J} = part + row_of({J}u, half);
            let score{J} = scored(scratch[row{J} * SCRATCH + column], head, first + row{J}, token);
            let weight_grad{J} = scratch[row{J} * SCRATCH + COOP + column];
            // A key behind the token wraps around.
            let sees{J} = token < seen && token - (first + row{J}) * params.causal < params.window;
            let weight{J} = select(0.0, exponential(score{J} - known.x), sees{J});
            let score_grad{J} = select(0.0, weight{J} * (weight_grad{J} - known.y) * slope_of(score{J}), sees{J});
            factors[row{J} * FACTORS + {s}u * COOP + column] = f16(weight{J});
#end
            workgroupBarrier();
            let weights = coopLoadT<coop_a>(&factors[own * FACTORS + {s}u * COOP], FACTORS);
#for c in 4
            let of_grads{c} = coopLoad<coop_b>(&grad_columns[{c}u * COOP * ACROSS + {s}u * (COOP / 4u)], ACROSS);
            value_sums{c} = coopMultiplyAdd(weights, of_grads{c}, value_sums{c});
#end
            workgroupBarrier();
#for J in 8
            factors[row{J} * FACTORS + {s}u * COOP + column] = f16(score_grad{J});
#end
            workgroupBarrier();
            let score_grads = coopLoadT<coop_a>(&factors[own * FACTORS + {s}u * COOP], FACTORS);
#for c in 4
            let of_queries{c} = coopLoad<coop_b>(&query_columns[{c}u * COOP * ACROSS + {s}u * (COOP / 4u)], ACROSS);
            key_sums{c} = coopMultiplyAdd(score_grads, of_queries{c}, key_sums{c});
#end
        }
#end
    }
    // Behind the tokens there are zeros.
#for c in 4
    workgroupBarrier();
    coopStoreT(key_sums{c}, &scratch[corner], scratch_pitch);
    coopStoreT(value_sums{c}, &scratch[beside], scratch_pitch);
    workgroupBarrier();
#for n in 2
    {
        let at = lane + {n}u * THREADS;
        let row = at / 4u;
        let four = share * (SHARE / 4u) + {c}u * (COOP / 4u) + at % 4u;
        if row < count && four < fours {
            let held = row * SCRATCH + at % 4u * 4u;
            let of_key = vec4(scratch[held], scratch[held + 1u], scratch[held + 2u], scratch[held + 3u]) * params.scale;
            let there = held + COOP;
            let of_value = vec4(scratch[there], scratch[there + 1u], scratch[there + 2u], scratch[there + 3u]);
            let place = sequence * params.capacity + first + row;
            let to = (place * params.heads + head) * fours + four;
            key_grad[to] = vec4<out_t>(select(vec4(0.0), of_key, row < written));
            value_grad[to] = vec4<out_t>(select(vec4(0.0), of_value, row < written));
        }
    }
#end
#end
}
