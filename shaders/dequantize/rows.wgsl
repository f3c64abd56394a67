// A packed matrix as plain f32. One invocation: four columns of one row.
@group(0) @binding(0) var<storage, read> codes: array<code_t>;           // (rows, code_words)
@group(0) @binding(1) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(2) var<storage, read_write> result: array<f32>;     // (rows, columns)
#import params
override WORKGROUP: u32;
#import weight
#import prepare

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    prepare_levels(lane, WORKGROUP);
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let quads = (params.columns + 3u) / 4u;
    let row = index / quads;
    if row >= params.rows {
        return;
    }
    let column = (index - row * quads) * 4u;
    let values = weight4(row, column);
    for (var i = 0u; i < 4u; i++) {
        if column + i < params.columns {
            result[row * params.columns + column + i] = values[i];
        }
    }
}
