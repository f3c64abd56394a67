// Rows with zeros behind them, to whole vectors of four. One invocation: one element of the result.
struct Params {
    rows: u32,
    columns: u32,
}
@group(0) @binding(0) var<storage, read> source: array<act>;           // (rows, columns)
@group(0) @binding(1) var<storage, read_write> result: array<act>;     // (rows, columns, padded to fours)
@group(1) @binding(0) var<uniform> params: Params;
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let stride = (params.columns + 3u) / 4u * 4u;
    let row = index / stride;
    let column = index - row * stride;
    if row < params.rows {
        var value = act(0.0);
        if column < params.columns {
            value = source[row * params.columns + column];
        }
        result[index] = value;
    }
}
