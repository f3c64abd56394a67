// Packed int8 dot products: four running sums per invocation, each with STEPS products of four signed bytes.
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
    let word = x[index];
    var s0 = 0i;
    var s1 = 1i;
    var s2 = 2i;
    var s3 = 3i;
    for (var step = 0u; step < params.steps; step++) {
        // Each product's operand depends on its own sum, so that none can be left out.
        s0 += dot4I8Packed(word ^ bitcast<u32>(s0), 0x01fe0302u);
        s1 += dot4I8Packed(word ^ bitcast<u32>(s1), 0x01fe0302u);
        s2 += dot4I8Packed(word ^ bitcast<u32>(s2), 0x01fe0302u);
        s3 += dot4I8Packed(word ^ bitcast<u32>(s3), 0x01fe0302u);
    }
    result[index] = bitcast<u32>(s0 ^ s1 ^ s2 ^ s3);
}
