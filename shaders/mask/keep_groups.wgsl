// Weights whose scores are among the largest of their group of consecutive ones, and 0 elsewhere. One invocation: one weight.
@group(0) @binding(0) var<storage, read> scores: array<f32>;             // (count)
@group(0) @binding(1) var<storage, read> weight: array<f32>;             // (count)
@group(0) @binding(2) var<storage, read_write> result: array<out_t>;     // (count)
#import params
override WORKGROUP: u32;
#import order_key

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index >= params.count {
        return;
    }
    let own = order_key(scores[index]);
    let first = index - index % params.group;
    var before = 0u;
    for (var other = first; other < first + params.group; other++) {
        let key = order_key(scores[other]);
        before += u32(key > own || (key == own && other < index));
    }
    // Not a product with 0: what goes may be infinite.
    result[index] = select(out_t(0.0), out_t(weight[index]), before < params.keep);
}
