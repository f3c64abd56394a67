// Product with many tokens, in f32 through workgroup memory. One workgroup of 16x16: a tile of 64 weight rows x 64
// tokens; one invocation: 4x4 results, 16 apart, so that neighbours write neighbours.
#import matmul_bindings
#import weight

const TILE: u32 = 64u;
const STEP: u32 = 16u;
// One more than the tile, so that the 16 columns of a store fall into different banks.
const PITCH: u32 = TILE + 1u;
var<workgroup> weight_tile: array<f32, STEP * PITCH>;   // (STEP columns, TILE weight rows)
var<workgroup> x_tile: array<f32, STEP * PITCH>;        // (STEP columns, TILE tokens)

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let row_tiles = (params.rows + TILE - 1u) / TILE;
    let token_tile = index / row_tiles;
    let first_row = (index - token_tile * row_tiles) * TILE;
    let first_token = token_tile * TILE;
    if first_token >= params.tokens {
        return;
    }
    let line = lane / 4u;
    let quad = (lane & 3u) * 4u;
    let across = lane & 15u;
    let down = lane / 16u;
    var sums: array<vec4<f32>, 4>;
    for (var start = 0u; start < params.columns; start += STEP) {
        let column = start + quad;
        var weights = vec4(0.0);
        var values = vec4(0.0);
        if column < params.columns {
            if first_row + line < params.rows {
                weights = weight4(params.row_start + first_row + line, column);
            }
            if first_token + line < params.tokens {
                values = x4(first_token + line, column);
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) {
            weight_tile[(quad + i) * PITCH + line] = weights[i];
            x_tile[(quad + i) * PITCH + line] = values[i];
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
            let w = k * PITCH + across;
            let a = vec4(weight_tile[w], weight_tile[w + 16u], weight_tile[w + 32u], weight_tile[w + 48u]);
            let b = k * PITCH + down;
            sums[0] += a * x_tile[b];
            sums[1] += a * x_tile[b + 16u];
            sums[2] += a * x_tile[b + 32u];
            sums[3] += a * x_tile[b + 48u];
        }
    }
    for (var t = 0u; t < 4u; t++) {
        let token = first_token + down + 16u * t;
        for (var r = 0u; r < 4u; r++) {
            let row = first_row + across + 16u * r;
            if token < params.tokens && row < params.rows {
                store_result(token, row, sums[t][r]);
            }
        }
    }
}
