// Rows cut off, or with zeros behind them. One invocation: one element of the result.
@group(0) @binding(0) var<storage, read> source: array<act>;           // (rows, columns)
@group(0) @binding(1) var<storage, read_write> result: array<act>;     // (rows, width)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let row = index / params.width;
    let column = index - row * params.width;
    if row < params.rows {
        var value = act(0.0);
        if column < params.columns {
            value = source[row * params.columns + column];
        }
        result[index] = value;
    }
}
