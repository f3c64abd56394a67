// Second moments of activations, result[p, i, j] = sum_t x[t, i] * x[t, j] over the tokens of a part, in f32 through workgroup
// memory; only tiles on and above the diagonal. One workgroup of 16x16: a tile of EDGE x EDGE; one invocation: QUADS x QUADS
// blocks of 4x4 results, 64 apart, so that neighbours write neighbours. Both operands of a tile are stretches of rows of x.
@group(0) @binding(0) var<storage, read> x: array<act>;                // (all tokens, width)
@group(0) @binding(1) var<storage, read_write> result: array<f32>;     // (parts, width, width)
#import params
#import gram_tile

const STEP: u32 = 16u;
const FOURS: u32 = EDGE / 4u;
var<workgroup> row_tile: array<vec4<f32>, STEP * FOURS>;       // (STEP tokens, EDGE columns of x in fours): rows of the result
var<workgroup> column_tile: array<vec4<f32>, STEP * FOURS>;    // the same of its columns

// Four columns of a token, zeros beyond the last.
fn load_four(token: u32, column: u32) -> vec4<f32> {
    let place = token * params.width + column;
    if column + 4u <= params.width {
        return vec4(f32(x[place]), f32(x[place + 1u]), f32(x[place + 2u]), f32(x[place + 3u]));
    }
    var values = vec4(0.0);
#for e in 4
    if column + {e}u < params.width {
        values[{e}] = f32(x[place + {e}u]);
    }
#end
    return values;
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let part = index / params.slots;
    let tile = gram_tile(params.first_slot + index % params.slots);
    if part >= params.parts || tile.x > tile.y {
        return;
    }
    let first_row = tile.x * EDGE;
    let first_column = tile.y * EDGE;
    let begin = params.token_start + part * params.part_tokens;
    let end = min(begin + params.part_tokens, params.token_start + params.tokens);
    let across = lane & 15u;
    let down = lane / 16u;
#for u in QUADS
#for e in 4
#for q in QUADS
    var sum{u}_{e}_{q} = vec4(0.0);
#end
#end
#end
    for (var start = begin; start < end; start += STEP) {
#for q in QUADS
        let at{q} = lane + {q}u * 256u;
        let token{q} = start + at{q} / FOURS;
        var of_rows{q} = vec4(0.0);
        var of_columns{q} = vec4(0.0);
        if token{q} < end {
            of_rows{q} = load_four(token{q}, first_row + at{q} % FOURS * 4u);
            of_columns{q} = load_four(token{q}, first_column + at{q} % FOURS * 4u);
        }
#end
        workgroupBarrier();
#for q in QUADS
        row_tile[at{q}] = of_rows{q};
        column_tile[at{q}] = of_columns{q};
#end
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
#for q in QUADS
            let rows{q} = row_tile[k * FOURS + down + {q}u * 16u];
            let columns{q} = column_tile[k * FOURS + across + {q}u * 16u];
#end
#for u in QUADS
#for e in 4
#for q in QUADS
            sum{u}_{e}_{q} += rows{u}[{e}] * columns{q};
#end
#end
#end
        }
    }
    // The sum of this call is added to what stands there as one: were it where the sum begins, each product would be rounded
    // against the sum of all calls.
    let base = part * params.width * params.width;
#for u in QUADS
#for e in 4
#for q in QUADS
    {
        let row = first_row + {u}u * 64u + down * 4u + {e}u;
        let column = first_column + {q}u * 64u + across * 4u;
        for (var r = 0u; r < 4u; r++) {
            if row < params.width && column + r < params.width {
                let place = base + row * params.width + column + r;
                var value = sum{u}_{e}_{q}[r];
                if params.accumulate == 1u {
                    value += result[place];
                }
                result[place] = value;
            }
        }
    }
#end
#end
#end
}
