// Values times a factor, in another type. One invocation: one element.
struct Params {
    count: u32,
    factor: f32,
}
@group(0) @binding(0) var<storage, read> x: array<act>;                // (count)
@group(0) @binding(1) var<storage, read_write> result: array<out_t>;   // (count)
@group(1) @binding(0) var<uniform> params: Params;
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index < params.count {
        result[index] = out_t(f32(x[index]) * params.factor);
    }
}
