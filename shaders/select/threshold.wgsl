// Which scores reach a threshold; no NaN does. One invocation: one score.
@group(0) @binding(0) var<storage, read> scores: array<f32>;           // (count)
@group(0) @binding(1) var<storage, read> threshold: array<f32>;        // (1)
@group(0) @binding(2) var<storage, read_write> mask: array<u32>;       // (count) 0 or 1
#import params
override WORKGROUP: u32;
#import order_key

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index < params.count {
        let bar = order_key(threshold[0]);
        // NaN has the key 0: as a threshold it is reached by nothing.
        mask[index] = u32(bar > 0u && order_key(scores[index]) >= bar);
    }
}
