// A tile of attention's backward kernels: 32 rows that the workgroup owns beside 64 that stream by. Of 128 invocations each
// has four owners in a row: with four streamed rows, 16 apart, for products of two rows, and with CHUNKS vectors of columns,
// 16 apart, for sums over the streamed rows. Both are register tiles, in which each vector loaded is multiplied four times.
#import is_nan
#import soft_cap
#import attention_seen

const OWNERS: u32 = 32u;
const STREAMED: u32 = 64u;
const LANES: u32 = 128u;
// A step of the products takes four vectors of columns, and a row is a vector longer, so that the same column of eight rows
// falls into different banks.
const PITCH: u32 = 5u;
// Where things stand while two products are formed: owners' rows, then streamed ones.
const OWNERS_FIRST: u32 = 0u;
const OWNERS_SECOND: u32 = 160u;
const STREAMED_FIRST: u32 = 320u;
const STREAMED_SECOND: u32 = 640u;
// While sums are: factors, (STREAMED, OWNERS in fours), then as many streamed rows as fit beside them.
const ROWS: u32 = 512u;
const FOURS: u32 = DIM / 4u;
const ROWS_AT_ONCE: u32 = 512u / FOURS;
const SUMS: u32 = 4u * CHUNKS;
var<workgroup> memory: array<vec4<f32>, 1024>;

// Where an owner's row stands: those that neighbours read at once are neighbours.
fn owner_place(row: u32) -> u32 {
    return (row % 4u * 8u + row / 4u) * PITCH;
}

// The products of a step's columns added to those of streamed rows, one a column, with owners. Not by dot, whose sum is a
// rounding and an addition of its own.
fn with_products(sums: mat4x4<f32>, owners: u32, streamed: u32, lane: u32) -> mat4x4<f32> {
    var result = sums;
    let mine = owners + lane % 8u * PITCH;
    let other = streamed + lane / 8u * PITCH;
#for F in 4
    {
        let owned = transpose(mat4x4(
            memory[mine + {F}u],
            memory[mine + 8u * PITCH + {F}u],
            memory[mine + 16u * PITCH + {F}u],
            memory[mine + 24u * PITCH + {F}u],
        ));
#for J in 4
        {
            let row = memory[other + {J}u * 16u * PITCH + {F}u];
            result[{J}] += owned[0] * row.x;
            result[{J}] += owned[1] * row.y;
            result[{J}] += owned[2] * row.z;
            result[{J}] += owned[3] * row.w;
        }
#end
    }
#end
    return result;
}

// The factors of streamed rows, where their sums find them.
fn keep_factors(factors: mat4x4<f32>, lane: u32) {
#for J in 4
    memory[{J}u * 128u + lane] = factors[{J}];
#end
}

// Streamed row `k` times the owners' factors, to the sums of those who see it; it stands at `row` of those at hand.
fn add_row(k: u32, row: u32, lane: u32, seen: vec4<bool>, sums: ptr<function, array<vec4<f32>, SUMS>>) {
    let factors = memory[k * 8u + lane % 8u];
#for C in CHUNKS
    {
        let values = memory[ROWS + row * FOURS + lane / 8u + {C}u * 16u];
#for I in 4
        // A row that an owner does not see must not count, not even times zero: it may be NaN.
        let before{I} = (*sums)[{I}u * CHUNKS + {C}u];
        (*sums)[{I}u * CHUNKS + {C}u] = select(before{I}, before{I} + factors[{I}] * values, seen[{I}]);
#end
    }
#end
}

// The same of four rows, all seen.
fn add_rows(k: u32, row: u32, lane: u32, sums: ptr<function, array<vec4<f32>, SUMS>>) {
#for K in 4
    add_row(k + {K}u, row + {K}u, lane, vec4(true), sums);
#end
}

// Scores with their bias, where there is one: of keys 16 places apart from `key` on, and of neighbouring tokens from `own` on.
fn with_bias(scores: mat4x4<f32>, head: u32, key: u32, own: u32) -> mat4x4<f32> {
    if params.distances == 0u {
        return scores;
    }
    var biased = scores;
#for J in 4
#for I in 4
    biased[{J}][{I}] += score_bias(head, key + {J}u * 16u, own + {I}u);
#end
#end
    return biased;
}

// Scores with their soft cap, where there is one.
fn with_soft_cap(scores: mat4x4<f32>) -> mat4x4<f32> {
    if params.soft_cap == 0.0 {
        return scores;
    }
    var capped = scores;
#for J in 4
#for I in 4
    capped[{J}][{I}] = soft_capped(scores[{J}][{I}], params.soft_cap);
#end
#end
    return capped;
}

// The derivative of the soft cap, where there is one, of four capped scores.
fn soft_cap_slopes(capped: vec4<f32>) -> vec4<f32> {
    if params.soft_cap == 0.0 {
        return vec4(1.0);
    }
    let ratio = capped / params.soft_cap;
    return vec4(1.0) - ratio * ratio;
}

// Which of four tokens in a row see a key, `distance` places before the last that the first of them sees, where each other one sees
// one more. Of keys that all see it is all of them.
fn seen_by(distance: i32) -> vec4<bool> {
    return vec4<u32>(vec4(distance) + vec4(0, 1, 2, 3)) < vec4(params.window);
}

// The first key, in fours, that a token sees whose last one is at `place`.
fn first_seen(place: u32) -> u32 {
    return (place + 1u - min(params.window, place + 1u)) & ~3u;
}

// exp; a device may take that of NaN for anything.
fn exponentials(x: vec4<f32>) -> vec4<f32> {
    return select(exp(x), x, vec4(is_nan(x.x), is_nan(x.y), is_nan(x.z), is_nan(x.w)));
}
