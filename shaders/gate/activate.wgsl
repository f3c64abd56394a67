// The activation of a feed-forward without a gate. One invocation: four elements.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;                // (count)
@group(0) @binding(1) var<storage, read_write> result: array<vec4<out_t>>;   // (count)
#import params
override WORKGROUP: u32;
#import activation

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count {
        return;
    }
    let g = vec4<f32>(x[index]);
    var activations = vec4(0.0);
#for C in 4
    activations[{C}] = activated(g[{C}], params.activation);
#end
    let value = vec4<out_t>(activations);
#import store_four
}
