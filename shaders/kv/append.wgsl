// Appends new tokens' rows to a cache, behind what each sequence holds already. One invocation: one element.
@group(0) @binding(0) var<storage, read> x: array<act>;                // (tokens, width)
@group(0) @binding(1) var<storage, read> past: array<u32>;             // (sequences) tokens seen before
@group(0) @binding(2) var<storage, read_write> cache: array<act>;      // (sequences, capacity, width)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let token = index / params.width;
    if token >= params.tokens {
        return;
    }
    let sequence = token / params.tokens_per_sequence;
    let position = past[sequence] + token - sequence * params.tokens_per_sequence;
    let column = index - token * params.width;
    cache[(sequence * params.capacity + position) * params.width + column] = x[index];
}
