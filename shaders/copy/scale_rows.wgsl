// Each row times a factor of its own. One invocation: four elements.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;                // (rows * columns)
@group(0) @binding(1) var<storage, read> factors: array<f32>;                // (rows)
@group(0) @binding(2) var<storage, read_write> result: array<vec4<out_t>>;   // (rows * columns)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count {
        return;
    }
    let last = params.count / params.columns - 1u;
    var own = vec4(0.0);
#for C in 4
    own[{C}] = factors[min((4u * index + {C}u) / params.columns, last)];
#end
    let value = vec4<out_t>(vec4<f32>(x[index]) * own);
#import store_four
}
