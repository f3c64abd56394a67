// Second moments of activations by cooperative matrices, result[p, i, j] = sum_t x[t, i] * x[t, j] over the tokens of a part:
// f16 tiles in workgroup memory, sums in f32; only tiles on and above the diagonal. One workgroup of WM x WN subgroups: a tile
// of EDGE x EDGE; one subgroup: TM x TN matrices of it. Stretches of rows of x are the right operand as they stand, and read
// column by column the left one. While a step of STEP tokens is multiplied, the next is on its way into registers. Tokens
// beyond the last are loaded as zero; columns beyond the last are loaded twice and not stored. Needs subgroups of SUBGROUP
// lanes. Cooperative operations want operands that are variables or `let`s.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;          // (all tokens, width in fours)
@group(0) @binding(1) var<storage, read_write> result: array<f32>;     // (parts, width, width)
#import params
#import gram_tile

const THREADS: u32 = SUBGROUP * WM * WN;
const QUADS: u32 = EDGE / 4u;
// Rows of a tile are 16 bytes longer than they need be, so that the rows of a matrix fall into different banks.
const PITCH: u32 = QUADS + 2u;
// Tokens that the workgroup loads at once, a vector of four columns an invocation.
const LINES: u32 = THREADS / QUADS;
const SCRATCH: u32 = COOP + 4u;
const AT_ONCE: u32 = WM * WN / TURNS;
var<workgroup> row_tile: array<vec4<f16>, STEP * PITCH>;       // (STEP tokens, EDGE columns of x): rows of the result
var<workgroup> column_tile: array<vec4<f16>, STEP * PITCH>;    // the same of its columns
var<workgroup> scratch: array<f32, AT_ONCE * COOP * SCRATCH>;  // a matrix of each of AT_ONCE subgroups
var<workgroup> tile_place: vec2<u32>;

fn load_edge(place: u32, token: u32, end: u32) -> vec4<f16> {
    if token >= end {
        return vec4<f16>();
    }
    return x[place];
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) subgroup: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let part = index / params.slots;
    if lane == 0u {
        tile_place = gram_tile(params.first_slot + index % params.slots);
    }
    // So that compilers know what cooperative operations ask for: all invocations go the same way.
    let tile = workgroupUniformLoad(&tile_place);
    // Workgroups beyond the last part, or of a tile below the diagonal, do nothing; the whole workgroup agrees.
    if (part >= params.parts) | (tile.x > tile.y) {
        return;
    }
    let first_row = tile.x * EDGE;
    let first_column = tile.y * EDGE;
    let begin = params.token_start + part * params.part_tokens;
    let end = min(begin + params.part_tokens, params.token_start + params.tokens);
    let fours = params.width / 4u;
    let row_part = subgroup / WN * COOP * TM;
    let column_part = subgroup % WN * COOP * TN;
    let line = lane / QUADS;
    let quad = lane % QUADS;
    let across = LINES * fours;
    var row_place = (begin + line) * fours + min(first_row / 4u + quad, fours - 1u);
    var column_place = (begin + line) * fours + min(first_column / 4u + quad, fours - 1u);
#for i in TM
#for j in TN
    var sum{i}_{j} = coop_c();
#end
#end
#for i in PIECES
    var of_rows{i} = load_edge(row_place + {i}u * across, begin + line + {i}u * LINES, end);
    var of_columns{i} = load_edge(column_place + {i}u * across, begin + line + {i}u * LINES, end);
#end
    for (var start = begin; start < end; start += STEP) {
        workgroupBarrier();
#for i in PIECES
        row_tile[(line + {i}u * LINES) * PITCH + quad] = of_rows{i};
        column_tile[(line + {i}u * LINES) * PITCH + quad] = of_columns{i};
#end
        workgroupBarrier();
        let next = start + STEP;
        row_place += STEP * fours;
        column_place += STEP * fours;
        if next + STEP <= end {
#for i in PIECES
            of_rows{i} = x[row_place + {i}u * across];
            of_columns{i} = x[column_place + {i}u * across];
#end
        } else if next < end {
#for i in PIECES
            of_rows{i} = load_edge(row_place + {i}u * across, next + line + {i}u * LINES, end);
            of_columns{i} = load_edge(column_place + {i}u * across, next + line + {i}u * LINES, end);
#end
        }
#for s in PARTS
        {
#for i in TM
            let a{i} = coopLoad<coop_a>(&row_tile[{s}u * COOP * PITCH + (row_part + {i}u * COOP) / 4u], PITCH);
#end
#for j in TN
            let b{j} = coopLoadT<coop_b>(&column_tile[{s}u * COOP * PITCH + (column_part + {j}u * COOP) / 4u], PITCH);
#for i in TM
            sum{i}_{j} = coopMultiplyAdd(a{i}, b{j}, sum{i}_{j});
#end
#end
        }
#end
    }
    // The sum of this call is added to what stands there as one: were it where the sum begins, each step would be rounded
    // against the sum of all calls, and matrix units round towards zero.
    let stride = params.width;
    let base = part * stride * stride;
    if (first_row + EDGE <= stride) & (first_column + EDGE <= stride) {
        let corner = base + (first_row + row_part) * stride + first_column + column_part;
        if params.accumulate == 1u {
#for i in TM
#for j in TN
            let before{i}_{j} = corner + {i}u * COOP * stride + {j}u * COOP;
            let old{i}_{j} = coopLoadT<coop_c>(&result[before{i}_{j}], stride);
            sum{i}_{j} = sum{i}_{j} + old{i}_{j};
#end
#end
        }
#for i in TM
#for j in TN
        let place{i}_{j} = corner + {i}u * COOP * stride + {j}u * COOP;
        coopStoreT(sum{i}_{j}, &result[place{i}_{j}], stride);
#end
#end
        return;
    }
    // Matrix by matrix through workgroup memory, which has room for AT_ONCE subgroups' matrices.
    let scratch_pitch = SCRATCH;
    for (var turn = 0u; turn < TURNS; turn++) {
        let held = subgroup - turn * AT_ONCE;
        let mine = min(held, AT_ONCE - 1u) * COOP * SCRATCH;
#for i in TM
#for j in TN
        workgroupBarrier();
        if held < AT_ONCE {
            coopStoreT(sum{i}_{j}, &scratch[mine], scratch_pitch);
        }
        workgroupBarrier();
        for (var e = lane; e < AT_ONCE * COOP * COOP; e += THREADS) {
            let owner = turn * AT_ONCE + e / (COOP * COOP);
            let line_of = e / COOP;
            let row = first_row + (owner / WN * TM + {i}u) * COOP + line_of % COOP;
            let column = first_column + (owner % WN * TN + {j}u) * COOP + e % COOP;
            if row < stride && column < stride {
                let place = base + row * stride + column;
                var value = scratch[line_of * SCRATCH + e % COOP];
                if params.accumulate == 1u {
                    value += result[place];
                }
                result[place] = value;
            }
        }
#end
#end
    }
}
