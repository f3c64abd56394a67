// Product with many tokens, in f32 through workgroup memory. One workgroup of 16x16: a tile of TILE weight rows x TILE
// tokens; one invocation: QUADS x QUADS blocks of 4x4 results, 64 apart, so that neighbours write neighbours. Half of those
// that load bring weights, half activations: four columns of four rows each, turned so that rows stand side by side.
#import matmul_bindings
#import weight
#import prepare

const TILE: u32 = 64u * QUADS;
const STEP: u32 = 16u;
// One more than the tile, so that the columns of a store fall into different banks; where that fits 16 KiB.
const PITCH: u32 = select(17u, 32u, QUADS == 2u);
// Invocations that load each operand.
const LOADERS: u32 = 64u * QUADS;
var<workgroup> weight_tile: array<vec4<f32>, STEP * PITCH>;   // (STEP columns, TILE weight rows in fours)
var<workgroup> x_tile: array<vec4<f32>, STEP * PITCH>;        // (STEP columns, TILE tokens in fours)

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    prepare_levels(lane, 256u);
    let index = group.y * groups.x + group.x;
    let row_tiles = (params.rows + TILE - 1u) / TILE;
    let token_tile = index / row_tiles;
    let first_row = (index - token_tile * row_tiles) * TILE;
    let first_token = token_tile * TILE;
    if first_token >= params.tokens {
        return;
    }
    let across = lane & 15u;
    let down = lane / 16u;
    let brings_weights = lane < LOADERS;
    let brings_x = lane >= LOADERS && lane < 2u * LOADERS;
    let quad = (lane & 3u) * 4u;
    let line = (lane % LOADERS) / 4u;
#for u in QUADS
#for e in 4
#for q in QUADS
    var sum{u}_{e}_{q} = vec4(0.0);
#end
#end
#end
    for (var start = 0u; start < params.columns; start += STEP) {
        let column = start + quad;
        var rows: array<vec4<f32>, 4>;
        if column < params.columns {
#for e in 4
            if brings_weights && first_row + line * 4u + {e}u < params.rows {
                rows[{e}] = weight4(params.row_start + first_row + line * 4u + {e}u, column);
            }
            if brings_x && first_token + line * 4u + {e}u < params.tokens {
                rows[{e}] = x4(first_token + line * 4u + {e}u, column);
            }
#end
        }
        workgroupBarrier();
#for e in 4
        if brings_weights {
            weight_tile[(quad + {e}u) * PITCH + line] = vec4(rows[0][{e}], rows[1][{e}], rows[2][{e}], rows[3][{e}]);
        }
        if brings_x {
            x_tile[(quad + {e}u) * PITCH + line] = vec4(rows[0][{e}], rows[1][{e}], rows[2][{e}], rows[3][{e}]);
        }
#end
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
#for q in QUADS
            let weights{q} = weight_tile[k * PITCH + across + {q}u * 16u];
            let values{q} = x_tile[k * PITCH + down + {q}u * 16u];
#end
#for u in QUADS
#for e in 4
#for q in QUADS
            sum{u}_{e}_{q} += weights{q} * values{u}[{e}];
#end
#end
#end
        }
    }
#for u in QUADS
#for e in 4
#for q in QUADS
    {
        let token = first_token + {u}u * 64u + down * 4u + {e}u;
        let row = first_row + {q}u * 64u + across * 4u;
        for (var r = 0u; r < 4u; r++) {
            if token < params.tokens && row + r < params.rows {
                store_result(token, row + r, sum{u}_{e}_{q}[r]);
            }
        }
    }
#end
#end
#end
}
