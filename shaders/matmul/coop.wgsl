// Product with many tokens by cooperative matrices: f16 tiles in workgroup memory, sums in f32. One workgroup of WM x WN
// subgroups: a tile of BM tokens x BN weight rows; one subgroup: TM x TN matrices of it. While a step of STEP columns is
// multiplied, the next is on its way into registers. What lies beyond an edge is loaded as zero, or loaded twice and not
// stored. Needs subgroups of SUBGROUP lanes. Cooperative operations want operands that are variables or `let`s.
#import matmul_bindings
const THREADS: u32 = SUBGROUP * WM * WN;
const BM: u32 = COOP * TM * WM;
const BN: u32 = COOP * TN * WN;
const QUADS: u32 = STEP / 4u;
// Rows of a tile are 16 bytes longer than they need be, so that the rows of a matrix fall into different banks.
const PITCH: u32 = QUADS + 2u;
// Rows that the workgroup loads at once, a vector of four columns an invocation.
const LINES: u32 = THREADS / QUADS;
// Tiles of tokens that are worked on together: their activations and the weights they meet stay in the cache.
const BAND: u32 = 8u;
const SCRATCH: u32 = COOP + 4u;
const AT_ONCE: u32 = WM * WN / TURNS;
var<workgroup> x_tile: array<vec4<f16>, BM * PITCH>;           // (BM tokens, STEP columns)
var<workgroup> weight_tile: array<vec4<f16>, BN * PITCH>;      // (BN rows, STEP columns)
var<workgroup> scratch: array<f32, AT_ONCE * COOP * SCRATCH>;  // a matrix of each of AT_ONCE subgroups
#import coop_weight
#import prepare

// Rows four apart go to neighbouring lanes, so that what they store falls into different banks.
fn spread(line: u32) -> u32 {
    return (line & 0xfffffff8u) | ((line & 1u) << 2u) | ((line >> 1u) & 3u);
}

// Where a token's activations begin.
fn token_place(token: u32) -> u32 {
    return (params.token_start + min(token, params.tokens - 1u)) * ((params.columns + 3u) / 4u);
}

fn load_x_edge(place: u32, column: u32) -> vec4<f16> {
    if column >= params.columns {
        return vec4<f16>();
    }
    return x[place];
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) subgroup: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    prepare_levels(lane, THREADS);
    let row_tiles = (params.rows + BN - 1u) / BN;
    let token_tiles = (params.tokens + BM - 1u) / BM;
    // Workgroups beyond the last tile do nothing; the whole workgroup agrees.
    let index = group.y * groups.x + group.x;
    if index >= row_tiles * token_tiles * params.splits {
        return;
    }
    // Sums of a part stand as further tokens.
    let part = index / (row_tiles * token_tiles);
    let part_tokens = part * params.tokens;
    let steps = (params.columns + STEP - 1u) / STEP;
    let first_column = part * steps / params.splits * STEP;
    let end = min((part + 1u) * steps / params.splits * STEP, params.columns);
    let tile = index - part * row_tiles * token_tiles;
    let band = tile / (BAND * row_tiles);
    let in_band = tile - band * BAND * row_tiles;
    let height = min(BAND, token_tiles - band * BAND);
    let row_tile = in_band / height;
    let first_row = row_tile * BN;
    let first_token = (band * BAND + in_band - row_tile * height) * BM;
    let token_part = subgroup / WN * COOP * TM;
    let row_part = subgroup % WN * COOP * TN;
    let line = lane / QUADS;
    let quad = lane % QUADS;
#for i in TM
#for j in TN
    var sum{i}_{j} = coop_c();
#end
#end
#import coop_before
#for i in X_PIECES
    let x_place{i} = token_place(first_token + spread(line + {i}u * LINES)) + quad;
    var x_next{i} = load_x_edge(x_place{i} + first_column / 4u, first_column + 4u * quad);
#end
#for i in W_PIECES
    let weight_place{i} = weight_place(lane, {i}u, first_row);
    var weight_next{i} = load_weight_edge(weight_place{i}, lane, first_column);
#end
    for (var start = first_column; start < end; start += STEP) {
        workgroupBarrier();
#for i in X_PIECES
        x_tile[spread(line + {i}u * LINES) * PITCH + quad] = x_next{i};
#end
#for i in W_PIECES
        store_weight(lane, {i}u, weight_next{i});
#end
        workgroupBarrier();
        let next = start + STEP;
        if next + STEP <= end {
#for i in X_PIECES
            x_next{i} = x[x_place{i} + next / 4u];
#end
#for i in W_PIECES
            weight_next{i} = load_weight(weight_place{i}, lane, next);
#end
        } else if next < end {
#for i in X_PIECES
            x_next{i} = load_x_edge(x_place{i} + next / 4u, next + 4u * quad);
#end
#for i in W_PIECES
            weight_next{i} = load_weight_edge(weight_place{i}, lane, next);
#end
        }
#for s in PARTS
        {
#for i in TM
            let a{i} = coopLoadT<coop_a>(&x_tile[(token_part + {i}u * COOP) * PITCH + {s}u * (COOP / 4u)], PITCH);
#end
#for j in TN
            let b{j} = coopLoad<coop_b>(&weight_tile[(row_part + {j}u * COOP) * PITCH + {s}u * (COOP / 4u)], PITCH);
#for i in TM
            sum{i}_{j} = coopMultiplyAdd(a{i}, b{j}, sum{i}_{j});
#end
#end
        }
#end
    }
#import coop_direct
}
