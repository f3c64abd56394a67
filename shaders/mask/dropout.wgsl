// Zeroes elements at random and scales the others. One invocation: four elements, each by its own place, however a tensor is
// cut.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;                // (count)
@group(0) @binding(1) var<storage, read_write> result: array<vec4<out_t>>;   // (count)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count {
        return;
    }
    let first = params.offset + index * 4u;
    let kept = vec4(
        pcg3d(first) >= params.threshold,
        pcg3d(first + 1u) >= params.threshold,
        pcg3d(first + 2u) >= params.threshold,
        pcg3d(first + 3u) >= params.threshold,
    );
    // Not a product with 0: what is dropped may be infinite.
    let value = vec4<out_t>(select(vec4(0.0), vec4<f32>(x[index]) * params.factor, kept));
#import store_four
}

// 32 random bits for a place, of the place and the seed: the last of three words, in which all of both have met.
fn pcg3d(place: u32) -> u32 {
    var v = vec3(place, params.seed_low, params.seed_high) * 1664525u + 1013904223u;
    v.x += v.y * v.z;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v ^= v >> vec3(16u);
    v.x += v.y * v.z;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    return v.z;
}
