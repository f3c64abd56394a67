// What attention's kernels read of sequences and of a bias by distance: a word of each sequence as it is, then the bits of each head's
// bias at each distance. One invocation: a word.
@group(0) @binding(0) var<storage, read> ends: array<u32>;             // (sequences)
@group(0) @binding(1) var<storage, read> bucket: array<u32>;           // (distances)
@group(0) @binding(2) var<storage, read> table: array<f32>;            // (buckets, heads)
@group(0) @binding(3) var<storage, read_write> result: array<u32>;     // (sequences), (heads, distances)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index < params.sequences {
        result[index] = ends[index];
    } else if index < params.sequences + params.heads * params.distances {
        let place = index - params.sequences;
        let own = bucket[place % params.distances];
        result[index] = bitcast<u32>(table[own * params.heads + place / params.distances]);
    }
}
