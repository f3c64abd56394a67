// Writes: every byte written once, its index. One invocation: 16 bytes.
@group(0) @binding(0) var<storage, read_write> result: array<vec4<u32>>;   // (quads, 4)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index < params.quads {
        result[index] = vec4(4u * index) + vec4(0u, 1u, 2u, 3u);
    }
}
