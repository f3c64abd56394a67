// Gradient of a product's weight: result[r, c] = sum_t grad[t, r] * x[t, c], in f32 through workgroup memory. One workgroup
// of 16x16: a tile of 64 rows x 64 columns; one invocation: 4x4 results, 16 apart. A call covers tokens [token_start,
// token_start + tokens), and goes on from what stands in the result: however tokens are cut into calls, the sum is the same.
@group(0) @binding(0) var<storage, read> grad: array<act>;             // (all tokens, rows)
@group(0) @binding(1) var<storage, read> x: array<act>;                // (all tokens, columns)
@group(0) @binding(2) var<storage, read_write> result: array<f32>;     // (rows, columns)
#import params

const TILE: u32 = 64u;
const STEP: u32 = 16u;
const PITCH: u32 = TILE + 1u;
var<workgroup> grad_tile: array<f32, STEP * PITCH>;     // (STEP tokens, TILE rows)
var<workgroup> x_tile: array<f32, STEP * PITCH>;        // (STEP tokens, TILE columns)

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let column_tiles = (params.columns + TILE - 1u) / TILE;
    let row_tile = index / column_tiles;
    let first_column = (index - row_tile * column_tiles) * TILE;
    let first_row = row_tile * TILE;
    if first_row >= params.rows {
        return;
    }
    let across = lane & 15u;
    let down = lane / 16u;
    var sums: array<vec4<f32>, 4>;
    if params.accumulate == 1u {
        for (var r = 0u; r < 4u; r++) {
            let row = first_row + down + 16u * r;
            for (var c = 0u; c < 4u; c++) {
                let column = first_column + across + 16u * c;
                if row < params.rows && column < params.columns {
                    sums[r][c] = result[row * params.columns + column];
                }
            }
        }
    }
    for (var start = 0u; start < params.tokens; start += STEP) {
        let token = params.token_start + start + down;
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) {
            let place = across + 16u * i;
            var gradient = 0.0;
            var value = 0.0;
            if start + down < params.tokens {
                if first_row + place < params.rows {
                    gradient = f32(grad[token * params.rows + first_row + place]);
                }
                if first_column + place < params.columns {
                    value = f32(x[token * params.columns + first_column + place]);
                }
            }
            grad_tile[down * PITCH + place] = gradient;
            x_tile[down * PITCH + place] = value;
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
            let w = k * PITCH + across;
            let a = vec4(x_tile[w], x_tile[w + 16u], x_tile[w + 32u], x_tile[w + 48u]);
            let b = k * PITCH + down;
            sums[0] += a * grad_tile[b];
            sums[1] += a * grad_tile[b + 16u];
            sums[2] += a * grad_tile[b + 32u];
            sums[3] += a * grad_tile[b + 48u];
        }
    }
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + down + 16u * r;
        for (var c = 0u; c < 4u; c++) {
            let column = first_column + across + 16u * c;
            if row < params.rows && column < params.columns {
                result[row * params.columns + column] = sums[r][c];
            }
        }
    }
}
