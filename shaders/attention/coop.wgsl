// Attention of many tokens at once by cooperative matrices, causal or of all keys, with grouped key-value heads over a cache. One
// workgroup: one head of OWNERS tokens of a sequence, and all keys they see, STREAMED at a time, twice: first for each row's highest
// score and the sum of exponentials below it, then for the weighted sum, whose matrices never need to be scaled again. Needs
// subgroups of SUBGROUP lanes.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;          // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;            // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<vec4<act>>;          // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> past: array<u32>;                 // (sequences) tokens seen before, or keys
@group(0) @binding(4) var<storage, read> places: array<u32>;               // (sequences) of no use, (heads, distances) bits of biases
@group(0) @binding(5) var<storage, read_write> result: array<vec4<out_t>>; // (all tokens, heads, head_dim)
@group(0) @binding(6) var<storage, read_write> lse_delta: array<vec2<f32>>; // (all tokens, heads) log-sum-exp of the scores, left alone
#import params
#import attention_coop

const NOTHING: f32 = -3.0e38;
// Blocks of four keys by four columns: keys go fastest.
const KEY_FOURS: u32 = STREAMED / 4u;
var<workgroup> key_tile: array<vec4<f16>, STREAMED * PITCH>;   // (STREAMED keys, DIM columns)
var<workgroup> value_tile: array<vec4<f16>, DIM * ACROSS>;     // (DIM columns, STREAMED keys)
var<workgroup> known: array<vec2<f32>, OWNERS>;                // highest score, sum of exponentials

// Four columns of a key or value, zeros behind the last of either.
fn cached(is_value: bool, place: u32, four: u32, exists: bool) -> vec4<f16> {
    if !exists || four >= params.head_dim / 4u {
        return vec4<f16>();
    }
    if is_value {
        return value[place + four];
    }
    return key[place + four];
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
    let place = last_seen(past[sequence], first);
    let here = own_place(past[sequence], first);
    let seen = place + 1u + (count - 1u) * params.causal;
    let begin = place + 1u - min(params.window, place + 1u);
    let scratch_pitch = SCRATCH;
#for s in 2
    let corner{s} = own * SCRATCH + {s}u * COOP;
#end
    // The queries, as many columns at a time as a matrix has, through the keys' place.
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
        key_tile[at / 4u * NARROW + at % 4u] = queried;
    }
#end
    workgroupBarrier();
    let queries{i} = coopLoadT<coop_a>(&key_tile[own * NARROW], NARROW);
#end
    // Of this invocation's rows and columns: the highest score, and the sum of the exponentials below it.
#for J in 8
    var highest{J} = NOTHING;
    var total{J} = 0.0;
#end
#for n in PIECES
    var next_key{n} = cached(false, cache + (begin + (lane + {n}u * THREADS) / FOURS) * pitch, (lane + {n}u * THREADS) % FOURS, begin + (lane + {n}u * THREADS) / FOURS < seen);
#end
    for (var start = begin; start < seen; start += STREAMED) {
        workgroupBarrier();
#for n in PIECES
        key_tile[(lane + {n}u * THREADS) / FOURS * PITCH + (lane + {n}u * THREADS) % FOURS] = next_key{n};
#end
        workgroupBarrier();
        let next = start + STREAMED;
#for n in PIECES
        next_key{n} = cached(false, cache + (next + (lane + {n}u * THREADS) / FOURS) * pitch, (lane + {n}u * THREADS) % FOURS, next + (lane + {n}u * THREADS) / FOURS < seen);
#end
#for s in STRIPS
        var scores{s} = coop_c();
#for i in COLS
        let keys{s}_{i} = coopLoad<coop_b>(&key_tile[{s}u * COOP * PITCH + {i}u * (COOP / 4u)], PITCH);
        scores{s} = coopMultiplyAdd(queries{i}, keys{s}_{i}, scores{s});
#end
        coopStoreT(scores{s}, &scratch[corner{s}], scratch_pitch);
#end
        workgroupBarrier();
#for J in 8
        {
            let row = part + row_of({J}u, half);
            var highest = highest{J};
#for s in STRIPS
            let score{s} = scored(scratch[row * SCRATCH + {s}u * COOP + column], head, start + {s}u * COOP + column, here + row);
            // A key behind the token wraps around.
            let sees{s} = place + row * params.causal - (start + {s}u * COOP + column) < params.window;
            highest = select(highest, score{s}, sees{s} && score{s} > highest);
#end
            total{J} *= exp(highest{J} - highest);
            highest{J} = highest;
            // NaN scores never win the maximum above; let them through here.
#for s in STRIPS
            total{J} += select(0.0, exponential(score{s} - highest), sees{s});
#end
        }
#end
    }
    // Each row's parts, which sixteen invocations have.
    workgroupBarrier();
#for J in 8
    scratch[part * SCRATCH + row_of({J}u, half) * COOP + column] = highest{J};
    scratch[part * SCRATCH + (COOP + row_of({J}u, half)) * COOP + column] = total{J};
#end
    workgroupBarrier();
    if half == 0u {
        let parts = part * SCRATCH + column * COOP;
        var highest = NOTHING;
        for (var i = 0u; i < COOP; i++) {
            highest = max(highest, scratch[parts + i]);
        }
        var total = 0.0;
        for (var i = 0u; i < COOP; i++) {
            total += scratch[parts + COOP * COOP + i] * exp(scratch[parts + i] - highest);
        }
        known[part + column] = vec2(highest, total);
        if part + column < count {
            let lse = highest + log(total);
            lse_delta[base + (part + column) * params.heads].x = select(lse, total, is_nan(total));
        }
    }
    workgroupBarrier();
#for J in 8
    highest{J} = known[part + row_of({J}u, half)].x;
#end
#for i in COLS
    var sums{i} = coop_c();
#end
#for n in PIECES
    next_key{n} = cached(false, cache + (begin + (lane + {n}u * THREADS) / FOURS) * pitch, (lane + {n}u * THREADS) % FOURS, begin + (lane + {n}u * THREADS) / FOURS < seen);
#end
#for n in BLOCKS
#for r in 4
    var next_value{n}_{r} = cached(true, cache + (begin + (lane + {n}u * THREADS) % KEY_FOURS * 4u + {r}u) * pitch, (lane + {n}u * THREADS) / KEY_FOURS, begin + (lane + {n}u * THREADS) % KEY_FOURS * 4u + {r}u < seen);
#end
#end
    for (var start = begin; start < seen; start += STREAMED) {
        workgroupBarrier();
#for n in PIECES
        key_tile[(lane + {n}u * THREADS) / FOURS * PITCH + (lane + {n}u * THREADS) % FOURS] = next_key{n};
#end
#for n in BLOCKS
#for c in 4
        value_tile[((lane + {n}u * THREADS) / KEY_FOURS * 4u + {c}u) * ACROSS + (lane + {n}u * THREADS) % KEY_FOURS] = vec4(next_value{n}_0[{c}], next_value{n}_1[{c}], next_value{n}_2[{c}], next_value{n}_3[{c}]);
#end
#end
        workgroupBarrier();
        let next = start + STREAMED;
#for n in PIECES
        next_key{n} = cached(false, cache + (next + (lane + {n}u * THREADS) / FOURS) * pitch, (lane + {n}u * THREADS) % FOURS, next + (lane + {n}u * THREADS) / FOURS < seen);
#end
#for n in BLOCKS
#for r in 4
        next_value{n}_{r} = cached(true, cache + (next + (lane + {n}u * THREADS) % KEY_FOURS * 4u + {r}u) * pitch, (lane + {n}u * THREADS) / KEY_FOURS, next + (lane + {n}u * THREADS) % KEY_FOURS * 4u + {r}u < seen);
#end
#end
#for s in STRIPS
        var scores{s} = coop_c();
#for i in COLS
        let keys{s}_{i} = coopLoad<coop_b>(&key_tile[{s}u * COOP * PITCH + {i}u * (COOP / 4u)], PITCH);
        scores{s} = coopMultiplyAdd(queries{i}, keys{s}_{i}, scores{s});
#end
        coopStoreT(scores{s}, &scratch[corner{s}], scratch_pitch);
#end
        workgroupBarrier();
#for J in 8
        {
            let row = part + row_of({J}u, half);
#for s in STRIPS
            let score{s} = scored(scratch[row * SCRATCH + {s}u * COOP + column], head, start + {s}u * COOP + column, here + row);
            let sees{s} = place + row * params.causal - (start + {s}u * COOP + column) < params.window;
            factors[row * FACTORS + {s}u * COOP + column] = f16(select(0.0, exponential(score{s} - highest{J}), sees{s}));
#end
        }
#end
        workgroupBarrier();
#for s in STRIPS
        let weights{s} = coopLoadT<coop_a>(&factors[own * FACTORS + {s}u * COOP], FACTORS);
#for i in COLS
        let values{s}_{i} = coopLoad<coop_b>(&value_tile[{i}u * COOP * ACROSS + {s}u * (COOP / 4u)], ACROSS);
        sums{i} = coopMultiplyAdd(weights{s}, values{s}_{i}, sums{i});
#end
#end
    }
#for i in COLS
    workgroupBarrier();
    coopStoreT(sums{i}, &scratch[corner0], scratch_pitch);
    workgroupBarrier();
#for n in 2
    {
        let at = lane + {n}u * THREADS;
        let row = at / 4u;
        let four = {i}u * (COOP / 4u) + at % 4u;
        if row < count && four < fours {
            let held = row * SCRATCH + at % 4u * 4u;
            let sum = vec4(scratch[held], scratch[held + 1u], scratch[held + 2u], scratch[held + 3u]);
            result[(base + row * params.heads) * fours + four] = vec4<out_t>(sum / known[row].y);
        }
    }
#end
#end
}
