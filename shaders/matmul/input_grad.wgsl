// Gradient of a product's input: result[t, c] = sum_r grad[t, r] * weight[r, c], in f32 through workgroup memory. One
// workgroup of 16x16: a tile of 64 columns x 64 tokens; one invocation: 4x4 results, 16 apart. A call covers tokens
// [token_start, token_start + tokens) and weight rows from row_start on, whose gradients stand from column grad_offset on.
@group(0) @binding(0) var<storage, read> grad: array<act>;             // (all tokens, grad_stride)
@group(0) @binding(1) var<storage, read> codes: array<code_t>;           // (rows, code_words)
@group(0) @binding(2) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (all tokens, columns)
#import params
#import weight
#import prepare

const TILE: u32 = 64u;
const STEP: u32 = 16u;
const PITCH: u32 = TILE + 1u;
var<workgroup> weight_tile: array<f32, STEP * PITCH>;   // (STEP weight rows, TILE columns)
var<workgroup> grad_tile: array<f32, STEP * PITCH>;     // (STEP weight rows, TILE tokens)

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    prepare_levels(lane, 256u);
    let index = group.y * groups.x + group.x;
    let column_tiles = (params.columns + TILE - 1u) / TILE;
    let token_tile = index / column_tiles;
    let first_column = (index - token_tile * column_tiles) * TILE;
    let first_token = token_tile * TILE;
    if first_token >= params.tokens {
        return;
    }
    let across = lane & 15u;
    let down = lane / 16u;
    let column = first_column + across * 4u;
    var sums: array<vec4<f32>, 4>;
    for (var start = 0u; start < params.rows; start += STEP) {
        let row = start + down;
        var weights = vec4(0.0);
        if row < params.rows && column < params.columns {
            weights = weight4(params.row_start + row, column);
        }
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) {
            weight_tile[down * PITCH + across * 4u + i] = weights[i];
            // Neighbours read neighbouring rows of one token's gradient.
            let token = first_token + down + 16u * i;
            var value = 0.0;
            if token < params.tokens && start + across < params.rows {
                let line = (params.token_start + token) * params.grad_stride + params.grad_offset;
                value = f32(grad[line + start + across]);
            }
            grad_tile[across * PITCH + down + 16u * i] = value;
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
            let w = k * PITCH + across;
            let a = vec4(weight_tile[w], weight_tile[w + 16u], weight_tile[w + 32u], weight_tile[w + 48u]);
            let b = k * PITCH + down;
            sums[0] += a * grad_tile[b];
            sums[1] += a * grad_tile[b + 16u];
            sums[2] += a * grad_tile[b + 32u];
            sums[3] += a * grad_tile[b + 48u];
        }
    }
    for (var t = 0u; t < 4u; t++) {
        let token = first_token + down + 16u * t;
        for (var c = 0u; c < 4u; c++) {
            let place = first_column + across + 16u * c;
            if token < params.tokens && place < params.columns {
                let at = (params.token_start + token) * params.columns + place;
                var value = sums[t][c];
                if params.accumulate == 1u {
                    value += result[at];
                }
                result[at] = value;
            }
        }
    }
}
