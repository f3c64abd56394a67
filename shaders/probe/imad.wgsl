// Integer multiply-adds: 16 running values per invocation, each turned STEPS x 4 times by v = v * 5 + b, wrapping, then
// added up. The number of operations is counted in src/kernels/probe/imad.rs.
@group(0) @binding(0) var<storage, read> x: array<u32>;                // (invocations)
@group(0) @binding(1) var<storage, read_write> result: array<u32>;     // (invocations)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index >= params.invocations {
        return;
    }
    let b = vec4<i32>(bitcast<i32>(x[index]));
    // No constant: a compiler would turn the product by 5 into a shift and an addition.
    let factor = vec4<i32>(i32(params.steps | 5u));
    // All sixteen differ, so that no compiler takes one for another.
    var v0 = b + vec4(0, 1, 2, 3);
    var v1 = b + vec4(4, 5, 6, 7);
    var v2 = b + vec4(8, 9, 10, 11);
    var v3 = b + vec4(12, 13, 14, 15);
    for (var step = 0u; step < params.steps; step++) {
        v0 = v0 * factor + b;
        v1 = v1 * factor + b;
        v2 = v2 * factor + b;
        v3 = v3 * factor + b;
        v0 = v0 * factor + b;
        v1 = v1 * factor + b;
        v2 = v2 * factor + b;
        v3 = v3 * factor + b;
        v0 = v0 * factor + b;
        v1 = v1 * factor + b;
        v2 = v2 * factor + b;
        v3 = v3 * factor + b;
        v0 = v0 * factor + b;
        v1 = v1 * factor + b;
        v2 = v2 * factor + b;
        v3 = v3 * factor + b;
    }
    let sum = (v0 ^ v1) + (v2 ^ v3);
    result[index] = bitcast<u32>((sum.x + sum.y) + (sum.z + sum.w));
}
