// The gradient of scores from that of the masked weights, in its place. One invocation: four elements.
@group(0) @binding(0) var<storage, read> weight: array<vec4<f32>>;           // (count)
@group(0) @binding(1) var<storage, read_write> result: array<vec4<f32>>;     // (count) the gradient
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count {
        return;
    }
    let value = result[index] * weight[index];
#import store_four
}
