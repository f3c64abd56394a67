// Reads from workgroup memory: each invocation adds up 256 neighbouring quads, one after the other, ROUNDS times.
@group(0) @binding(0) var<storage, read> x: array<u32>;                // (groups, 512)
@group(0) @binding(1) var<storage, read_write> result: array<u32>;     // (groups, 256)
#import params
var<workgroup> tile: array<vec4<u32>, 512>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    if index >= params.groups {
        return;
    }
    tile[lane] = x[index * 512u + lane] * vec4(1u, 3u, 5u, 7u);
    tile[lane + 256u] = x[index * 512u + 256u + lane] * vec4(1u, 3u, 5u, 7u);
    workgroupBarrier();
    var sum = vec4(0u);
    for (var round = 0u; round < params.rounds; round++) {
        // Another sum each round, so that none can be left out.
        sum ^= vec4(round);
        for (var step = 0u; step < 256u; step += 8u) {
            let first = lane + step;
            sum += tile[first];
            sum += tile[first + 1u];
            sum += tile[first + 2u];
            sum += tile[first + 3u];
            sum += tile[first + 4u];
            sum += tile[first + 5u];
            sum += tile[first + 6u];
            sum += tile[first + 7u];
        }
    }
    result[index * 256u + lane] = sum.x ^ sum.y ^ sum.z ^ sum.w;
}
