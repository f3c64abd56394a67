// A product of parts of matrices: result = base + factor * a b^T, in f32 through workgroup memory. Each part has a place where it
// begins and steps from one row, column and depth to the next, so that transposed and cut-out parts are read where they stand.
// One workgroup of 16x16: a tile of 64 x 64; one invocation: 4x4 results, 16 apart.
@group(0) @binding(0) var<storage, read> a: array<f32>;                // element (row, k) at a_start + row * a_row + k * a_depth
@group(0) @binding(1) var<storage, read> b: array<f32>;                // element (column, k) likewise
@group(0) @binding(2) var<storage, read> base: array<f32>;             // element (row, column) at base_start + row * base_row + column
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // likewise
#import params

const TILE: u32 = 64u;
const STEP: u32 = 16u;
const PITCH: u32 = TILE + 1u;
var<workgroup> a_tile: array<f32, STEP * PITCH>;     // (STEP depths, TILE rows)
var<workgroup> b_tile: array<f32, STEP * PITCH>;     // (STEP depths, TILE columns)

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
    for (var start = 0u; start < params.depth; start += STEP) {
        workgroupBarrier();
        // Neighbours in memory are read by neighbours in the workgroup, whichever way a part lies.
        for (var i = 0u; i < 4u; i++) {
            var place = across + 16u * i;
            var depth = down;
            if params.a_depth == 1u {
                place = down + 16u * i;
                depth = across;
            }
            var value = 0.0;
            if start + depth < params.depth && first_row + place < params.rows {
                value = a[params.a_start + (first_row + place) * params.a_row + (start + depth) * params.a_depth];
            }
            a_tile[depth * PITCH + place] = value;
        }
        for (var i = 0u; i < 4u; i++) {
            var place = across + 16u * i;
            var depth = down;
            if params.b_depth == 1u {
                place = down + 16u * i;
                depth = across;
            }
            var value = 0.0;
            if start + depth < params.depth && first_column + place < params.columns {
                value = b[params.b_start + (first_column + place) * params.b_column + (start + depth) * params.b_depth];
            }
            b_tile[depth * PITCH + place] = value;
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
            let w = k * PITCH + across;
            let columns = vec4(b_tile[w], b_tile[w + 16u], b_tile[w + 32u], b_tile[w + 48u]);
            let r = k * PITCH + down;
            sums[0] += columns * a_tile[r];
            sums[1] += columns * a_tile[r + 16u];
            sums[2] += columns * a_tile[r + 32u];
            sums[3] += columns * a_tile[r + 48u];
        }
    }
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + down + 16u * r;
        for (var c = 0u; c < 4u; c++) {
            let column = first_column + across + 16u * c;
            if row < params.rows && column < params.columns {
                var value = params.factor * sums[r][c];
                if params.with_base == 1u {
                    value += base[params.base_start + row * params.base_row + column];
                }
                result[params.result_start + row * params.result_row + column] = value;
            }
        }
    }
}
