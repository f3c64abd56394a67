// Reads: every byte read once; one word is written for every QUADS x 16 bytes read. One invocation: QUADS quads, one workgroup
// apart, whose words are combined by exclusive or.
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;              // (quads, 4)
@group(0) @binding(1) var<storage, read_write> result: array<u32>;         // (quads / QUADS)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let block = group.y * groups.x + group.x;
    // No group is idle: more of them than one dimension of a dispatch holds would need a binding of 4 GiB.
    let first = block * WORKGROUP * QUADS + lane;
    var folded = x[first];
    for (var i = 1u; i < QUADS; i++) {
        folded ^= x[first + i * WORKGROUP];
    }
    result[block * WORKGROUP + lane] = folded.x ^ folded.y ^ folded.z ^ folded.w;
}
