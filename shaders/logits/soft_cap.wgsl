// The soft cap of logits, in place: cap * tanh(logit / cap). One invocation: four elements.
@group(0) @binding(0) var<storage, read_write> result: array<vec4<f32>>;   // (count) logits before
#import params
override WORKGROUP: u32;
#import soft_cap

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count {
        return;
    }
    let logits = result[index];
    var value = vec4(0.0);
#for C in 4
    value[{C}] = soft_capped(logits[{C}], params.cap);
#end
#import store_four
}
