// The gradient of attention's queries by cooperative matrices. One workgroup: one head of OWNERS tokens of a sequence,
// and all keys they see, STREAMED at a time: two products over the columns, then sums over the keys. Needs subgroups of
// SUBGROUP lanes.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;          // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;            // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<vec4<act>>;          // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> grad: array<vec4<act>>;           // (all tokens, heads, head_dim)
@group(0) @binding(4) var<storage, read> lse_delta: array<vec2<f32>>;     // (all tokens, heads) log-sum-exp, product
@group(0) @binding(5) var<storage, read> places: array<u32>;               // (sequences) tokens before, or keys, (heads, distances) bits of biases
@group(0) @binding(6) var<storage, read_write> result: array<vec4<out_t>>; // (all tokens, heads, head_dim)
#import params
#import attention_coop

// Blocks of four keys by four columns: keys go fastest, then columns; first of all keys, then of all values.
const KEY_FOURS: u32 = STREAMED / 4u;
var<workgroup> key_tile: array<vec4<f16>, STREAMED * PITCH>;       // (STREAMED keys, DIM columns)
var<workgroup> value_tile: array<vec4<f16>, STREAMED * PITCH>;     // (STREAMED keys, DIM columns)
var<workgroup> key_columns: array<vec4<f16>, DIM * ACROSS>;        // (DIM columns, STREAMED keys)

// Four columns of a key, or of a value in the second half of the blocks; zeros behind the last of either.
fn streamed_key(block: u32, start: u32, seen: u32, r: u32, cache: u32, pitch: u32) -> vec4<f16> {
    let four = block / KEY_FOURS % FOURS;
    let place = start + block % KEY_FOURS * 4u + r;
    if place >= seen || four >= params.head_dim / 4u {
        return vec4<f16>();
    }
    if block < KEY_FOURS * FOURS {
        return key[cache + place * pitch + four];
    }
    return value[cache + place * pitch + four];
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) subgroup: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
#import attention_owners
    let own = subgroup * COOP;
    // What an invocation does alone need not be for its own subgroup.
    let part = lane / SUBGROUP * COOP;
    let column = lane % COOP;
    let half = lane % SUBGROUP / COOP;
    // The last key that the first token sees, and its own place.
    let place = last_seen(places[sequence], first);
    let here = own_place(places[sequence], first);
    let seen = place + 1u + (count - 1u) * params.causal;
    let begin = place + 1u - min(params.window, place + 1u);
    let scratch_pitch = SCRATCH;
    let corner = own * SCRATCH;
    let beside = corner + COOP;
    // The queries and their gradients, as many columns at a time as a matrix has, through the keys' place.
#for i in COLS
    workgroupBarrier();
#for n in 2
    {
        let at = lane + {n}u * THREADS;
        let four = {i}u * (COOP / 4u) + at % 4u;
        var queried = vec4<f16>();
        if at / 4u < count && four < fours {
            queried = query[(base + at / 4u * params.heads) * fours + four];
        }
        key_columns[at / 4u * NARROW + at % 4u] = queried;
    }
#end
    workgroupBarrier();
    let queries{i} = coopLoadT<coop_a>(&key_columns[own * NARROW], NARROW);
    workgroupBarrier();
#for n in 2
    {
        let at = lane + {n}u * THREADS;
        let four = {i}u * (COOP / 4u) + at % 4u;
        var graded = vec4<f16>();
        if at / 4u < count && four < fours {
            graded = grad[(base + at / 4u * params.heads) * fours + four];
        }
        key_columns[at / 4u * NARROW + at % 4u] = graded;
    }
#end
    workgroupBarrier();
    let grads{i} = coopLoadT<coop_a>(&key_columns[own * NARROW], NARROW);
#end
#for J in 8
    var known{J} = vec2(0.0);
    if part + row_of({J}u, half) < count {
        known{J} = lse_delta[base + (part + row_of({J}u, half)) * params.heads];
    }
#end
#for i in COLS
    var sums{i} = coop_c();
#end
#for n in BLOCKS
#for r in 4
    var next{n}_{r} = streamed_key(lane + {n}u * THREADS, begin, seen, {r}u, cache, pitch);
#end
#end
    for (var start = begin; start < seen; start += STREAMED) {
        workgroupBarrier();
#for n in BLOCKS
        {
            let block = lane + {n}u * THREADS;
            let four = block / KEY_FOURS % FOURS;
            let its = block % KEY_FOURS;
            if block < KEY_FOURS * FOURS {
#for r in 4
                key_tile[(its * 4u + {r}u) * PITCH + four] = next{n}_{r};
                key_columns[(four * 4u + {r}u) * ACROSS + its] = vec4(next{n}_0[{r}], next{n}_1[{r}], next{n}_2[{r}], next{n}_3[{r}]);
#end
            } else {
#for r in 4
                value_tile[(its * 4u + {r}u) * PITCH + four] = next{n}_{r};
#end
            }
        }
#end
        workgroupBarrier();
#for n in BLOCKS
#for r in 4
        next{n}_{r} = streamed_key(lane + {n}u * THREADS, start + STREAMED, seen, {r}u, cache, pitch);
#end
#end
#for s in STRIPS
        var scores{s} = coop_c();
        var weight_grads{s} = coop_c();
#for i in COLS
        let keys{s}_{i} = coopLoad<coop_b>(&key_tile[{s}u * COOP * PITCH + {i}u * (COOP / 4u)], PITCH);
        scores{s} = coopMultiplyAdd(queries{i}, keys{s}_{i}, scores{s});
        let values{s}_{i} = coopLoad<coop_b>(&value_tile[{s}u * COOP * PITCH + {i}u * (COOP / 4u)], PITCH);
        weight_grads{s} = coopMultiplyAdd(grads{i}, values{s}_{i}, weight_grads{s});
#end
        coopStoreT(scores{s}, &scratch[corner], scratch_pitch);
        coopStoreT(weight_grads{s}, &scratch[beside], scratch_pitch);
        workgroupBarrier();
#for J in 8
        {
            let row = part + row_of({J}u, half);
            let score = scored(scratch[row * SCRATCH + column], head, start + {s}u * COOP + column, here + row);
            let weight_grad = scratch[row * SCRATCH + COOP + column];
            // A key behind the token wraps around.
            let sees = place + row * params.causal - (start + {s}u * COOP + column) < params.window;
            let score_grad = exponential(score - known{J}.x) * (weight_grad - known{J}.y) * slope_of(score);
            factors[row * FACTORS + {s}u * COOP + column] = f16(select(0.0, score_grad, sees));
        }
#end
        workgroupBarrier();
#end
#for s in STRIPS
        let score_grads{s} = coopLoadT<coop_a>(&factors[own * FACTORS + {s}u * COOP], FACTORS);
#for i in COLS
        let columns{s}_{i} = coopLoad<coop_b>(&key_columns[{i}u * COOP * ACROSS + {s}u * (COOP / 4u)], ACROSS);
        sums{i} = coopMultiplyAdd(score_grads{s}, columns{s}_{i}, sums{i});
#end
#end
    }
#for i in COLS
    workgroupBarrier();
    coopStoreT(sums{i}, &scratch[corner], scratch_pitch);
    workgroupBarrier();
#for n in 2
    {
        let at = lane + {n}u * THREADS;
        let row = at / 4u;
        let four = {i}u * (COOP / 4u) + at % 4u;
        if row < count && four < fours {
            let held = row * SCRATCH + at % 4u * 4u;
            let sum = vec4(scratch[held], scratch[held + 1u], scratch[held + 2u], scratch[held + 3u]);
            result[(base + row * params.heads) * fours + four] = vec4<out_t>(sum * params.scale);
        }
    }
#end
#end
}
