// Each row plus a vector. One invocation: four elements.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;              // (rows, columns)
@group(0) @binding(1) var<storage, read> shift: array<f32>;                // (columns)
@group(0) @binding(2) var<storage, read_write> result: array<vec4<f32>>;   // (rows, columns)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count {
        return;
    }
    var value = x[index];
#for C in 4
    value[{C}] += shift[(index * 4u + {C}u) % params.columns];
#end
#import store_four
}
