// One step by the sign of a gradient, within bounds. One invocation: one element.
@group(0) @binding(0) var<storage, read> gradient: array<f32>;         // (count)
@group(0) @binding(1) var<storage, read> state: array<f32>;            // (4) norm, factor, finite, 0
@group(0) @binding(2) var<storage, read_write> weight: array<f32>;     // (count)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index >= params.count || state[2] == 0.0 {
        return;
    }
    weight[index] = clamp(weight[index] - params.rate * sign(gradient[index]), params.low, params.high);
}
