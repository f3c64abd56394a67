// A packed matrix with rows and columns exchanged, as plain numbers; rows of the result have zeros behind them, to whole
// blocks of 32. One workgroup: a tile of 32 rows x 64 columns through workgroup memory.
@group(0) @binding(0) var<storage, read> codes: array<code_t>;         // (rows, code_words)
@group(0) @binding(1) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(2) var<storage, read_write> result: array<vec4<out_t>>;   // (columns, stride)
#import params
#import weight
#import prepare

const DOWN: u32 = 32u;
const ACROSS: u32 = 64u;
const PITCH: u32 = ACROSS + 1u;
var<workgroup> tile: array<f32, DOWN * PITCH>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    prepare_levels(lane, 256u);
    let index = group.y * groups.x + group.x;
    let across = (params.columns + ACROSS - 1u) / ACROSS;
    let first_row = index / across * DOWN;
    let first_column = index % across * ACROSS;
    if first_row >= params.stride {
        return;
    }
    for (var place = lane; place < DOWN * ACROSS / 4u; place += 256u) {
        let row = place / (ACROSS / 4u);
        let column = place % (ACROSS / 4u) * 4u;
        var values = vec4(0.0);
        if first_row + row < params.rows && first_column + column < params.columns {
            values = weight4(first_row + row, first_column + column);
        }
        for (var i = 0u; i < 4u; i++) {
            tile[row * PITCH + column + i] = values[i];
        }
    }
    workgroupBarrier();
    for (var place = lane; place < DOWN * ACROSS / 4u; place += 256u) {
        let column = place / (DOWN / 4u);
        let row = place % (DOWN / 4u) * 4u;
        if first_column + column < params.columns {
            var values: vec4<f32>;
            for (var i = 0u; i < 4u; i++) {
                values[i] = tile[(row + i) * PITCH + column];
            }
            result[((first_column + column) * params.stride + first_row + row) / 4u] = vec4<out_t>(values);
        }
    }
}
