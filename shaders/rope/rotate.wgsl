// Rotary position embedding in the half-split layout, written in place of the input's layout or into a cache.
// One invocation: one pair of one head of one token.
@group(0) @binding(0) var<storage, read> x: array<act>;                // (tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> rotations: array<vec2<f32>>;  // (positions, head_dim / 2) cosine and sine
@group(0) @binding(2) var<storage, read> past: array<u32>;             // (sequences) tokens seen before
@group(0) @binding(3) var<storage, read_write> result: array<out_t>;   // (tokens or sequences * capacity, heads, head_dim)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let half = params.head_dim / 2u;
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let line = index / half;
    let pair = index - line * half;
    let token = line / params.heads;
    let head = line - token * params.heads;
    if token >= params.tokens {
        return;
    }
    let sequence = token / params.tokens_per_sequence;
    let position = past[sequence] + token - sequence * params.tokens_per_sequence;
    var row = token;
    if params.capacity > 0u {
        row = sequence * params.capacity + position;
    }
    let rotation = rotations[position * half + pair];
    let source = line * params.head_dim + pair;
    let first = f32(x[source]);
    let second = f32(x[source + half]);
    let place = (row * params.heads + head) * params.head_dim + pair;
    result[place] = out_t(first * rotation.x - second * rotation.y);
    result[place + half] = out_t(second * rotation.x + first * rotation.y);
}
