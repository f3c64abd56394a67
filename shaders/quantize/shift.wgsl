// Weights moved by learned shares of their groups' steps. One invocation: one weight.
@group(0) @binding(0) var<storage, read> weight: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read> shares: array<f32>;           // (rows, columns)
@group(0) @binding(2) var<storage, read> scales: array<f32>;           // (rows, groups)
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (rows, columns)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let row = index / params.columns;
    if row >= params.rows {
        return;
    }
    let column = index - row * params.columns;
    let scale = scales[row * params.groups + column / params.group_columns];
    result[index] = weight[index] + shares[index] * scale;
}
