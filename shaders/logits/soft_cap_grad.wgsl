// The gradient at logits before their soft cap, in the place of that behind it: grad * (1 - (capped / cap)^2). One
// invocation: four elements.
@group(0) @binding(0) var<storage, read> capped: array<vec4<f32>>;         // (count)
@group(0) @binding(1) var<storage, read_write> result: array<vec4<f32>>;   // (count) the gradient at `capped` before
#import params
override WORKGROUP: u32;
#import soft_cap

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count {
        return;
    }
    let capped_four = capped[index];
    var value = result[index];
#for C in 4
    value[{C}] *= soft_cap_slope(capped_four[{C}], params.cap);
#end
#import store_four
}
