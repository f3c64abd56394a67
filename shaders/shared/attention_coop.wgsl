// Attention by cooperative matrices: OWNERS rows that the workgroup owns, a matrix's edge of them to each subgroup, beside
// STREAMED rows that stream by. Scores leave the matrices through workgroup memory, where masks and exponentials are applied,
// and come back as f16. Matrices are only loaded as `matmul/coop` loads them: the left one row by row, the right one column by
// column, so what is summed over stands in a row, and what streams by is also kept transposed.
#import soft_cap
#import attention_seen

const THREADS: u32 = SUBGROUP * OWNERS / COOP;
const STREAMED: u32 = COOP * STRIPS;
const FOURS: u32 = DIM / 4u;
// Rows are 16 bytes longer than they need be, so that the rows of a matrix fall into different banks: of DIM columns, of
// STREAMED rows transposed, and, in elements, of as many factors.
const PITCH: u32 = FOURS + 2u;
const ACROSS: u32 = STREAMED / 4u + 2u;
const FACTORS: u32 = 4u * ACROSS;
// Of one matrix's columns.
const NARROW: u32 = COOP / 4u + 2u;
// Two matrices beside each other.
const SCRATCH: u32 = 2u * COOP + 4u;
var<workgroup> scratch: array<f32, OWNERS * SCRATCH>;          // (OWNERS, 2 COOP) what matrices hold
var<workgroup> factors: array<f16, OWNERS * FACTORS>;          // (OWNERS, STREAMED) the left matrices of sums

// Which of a subgroup's rows an invocation has as its number `j` of eight: two that neighbours read at once are four apart, in
// different banks.
fn row_of(j: u32, half: u32) -> u32 {
    return (j & 3u) + (j & 4u) * 2u + half * 4u;
}

// A sum of products as a score of the key at place `key` for the token at place `own`.
fn scored(product: f32, head: u32, key: u32, own: u32) -> f32 {
    var score = product * params.scale;
    if params.distances > 0u {
        score += score_bias(head, key, own);
    }
    if params.soft_cap == 0.0 {
        return score;
    }
    return soft_capped(score, params.soft_cap);
}

// The derivative of the soft cap, where there is one, of a score.
fn slope_of(score: f32) -> f32 {
    if params.soft_cap == 0.0 {
        return 1.0;
    }
    return soft_cap_slope(score, params.soft_cap);
}

// exp; a device may take that of NaN for anything.
fn exponential(x: f32) -> f32 {
    return select(exp(x), x, is_nan(x));
}
