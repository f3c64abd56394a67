// Gradient of activation(x) at its input. One invocation: four elements.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;                // (count)
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>;             // (count)
@group(0) @binding(2) var<storage, read_write> result: array<vec4<out_t>>;   // (count)
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
    var slopes = vec4(0.0);
#for C in 4
    slopes[{C}] = activated_slope(g[{C}], params.activation).y;
#end
    let value = vec4<out_t>(grad[index] * slopes);
#import store_four
}
