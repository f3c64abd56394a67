// The diagonal of the empirical Fisher matrix: squares of gradients, weighed. One invocation: one element.
@group(0) @binding(0) var<storage, read> gradient: array<f32>;
@group(0) @binding(1) var<storage, read_write> result: array<f32>;
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index < params.count {
        let at = params.first + index;
        var value = params.factor * (gradient[at] * gradient[at]);
        if params.accumulate == 1u {
            value += result[at];
        }
        result[at] = value;
    }
}
