// Multiply-adds: 16 running values per invocation, each turned STEPS x 4 times by v = v * 0.5 + b, then summed. The number
// of operations is counted in src/kernels/probe/fma.rs.
@group(0) @binding(0) var<storage, read> x: array<act>;                // (invocations)
@group(0) @binding(1) var<storage, read_write> result: array<act>;     // (invocations)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index >= params.invocations {
        return;
    }
    let b = vec4<act>(x[index]);
    let half = vec4<act>(act(0.5));
    // All sixteen differ, so that no compiler takes one for another.
    let start = vec4<act>(act(0.0), act(0.25), act(0.5), act(0.75));
    var v0 = b + start;
    var v1 = b + start + vec4<act>(act(1.0));
    var v2 = b + start + vec4<act>(act(2.0));
    var v3 = b + start + vec4<act>(act(3.0));
    for (var step = 0u; step < params.steps; step++) {
        v0 = fma(v0, half, b);
        v1 = fma(v1, half, b);
        v2 = fma(v2, half, b);
        v3 = fma(v3, half, b);
        v0 = fma(v0, half, b);
        v1 = fma(v1, half, b);
        v2 = fma(v2, half, b);
        v3 = fma(v3, half, b);
        v0 = fma(v0, half, b);
        v1 = fma(v1, half, b);
        v2 = fma(v2, half, b);
        v3 = fma(v3, half, b);
        v0 = fma(v0, half, b);
        v1 = fma(v1, half, b);
        v2 = fma(v2, half, b);
        v3 = fma(v3, half, b);
    }
    let sum = (v0 + v1) + (v2 + v3);
    result[index] = (sum.x + sum.y) + (sum.z + sum.w);
}
