// Adds a branch to the residual stream, which stays in f32. One invocation: one element.
struct Params {
    count: u32,
}
@group(0) @binding(0) var<storage, read> branch: array<act>;           // (count)
@group(0) @binding(1) var<storage, read_write> residual: array<f32>;   // (count)
@group(1) @binding(0) var<uniform> params: Params;
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index < params.count {
        residual[index] += f32(branch[index]);
    }
}
