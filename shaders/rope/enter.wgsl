// Queries and keys of new tokens rotated, and keys and values written behind what each sequence's cache holds. One invocation: one
// pair of a head of a token; the heads of queries first, then those of keys, then those of values.
@group(0) @binding(0) var<storage, read> query: array<act>;            // (tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<act>;              // (tokens, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<act>;            // likewise
@group(0) @binding(3) var<storage, read> rotations: array<vec2<f32>>;  // (positions, head_dim / 2) cosine and sine
@group(0) @binding(4) var<storage, read> past: array<u32>;             // (sequences) tokens seen before
@group(0) @binding(5) var<storage, read_write> rotated: array<out_t>;  // (tokens, heads, head_dim)
@group(0) @binding(6) var<storage, read_write> keys: array<out_t>;     // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(7) var<storage, read_write> values: array<out_t>;   // likewise
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let half = params.head_dim / 2u;
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let line = index / half;
    let pair = index - line * half;
    let lines = params.heads + 2u * params.kv_heads;
    let token = line / lines;
    if token >= params.tokens {
        return;
    }
    let head = line - token * lines;
    let sequence = token / params.tokens_per_sequence;
    let position = past[sequence] + token - sequence * params.tokens_per_sequence;
    let rotation = rotations[position * half + pair];
    if head < params.heads {
        let place = (token * params.heads + head) * params.head_dim + pair;
        let first = f32(query[place]);
        let second = f32(query[place + half]);
        rotated[place] = out_t(first * rotation.x - second * rotation.y);
        rotated[place + half] = out_t(second * rotation.x + first * rotation.y);
        return;
    }
    let row = sequence * params.capacity + position;
    if head < params.heads + params.kv_heads {
        let own = head - params.heads;
        let source = (token * params.kv_heads + own) * params.head_dim + pair;
        let place = (row * params.kv_heads + own) * params.head_dim + pair;
        let first = f32(key[source]);
        let second = f32(key[source + half]);
        keys[place] = out_t(first * rotation.x - second * rotation.y);
        keys[place + half] = out_t(second * rotation.x + first * rotation.y);
        return;
    }
    let own = head - params.heads - params.kv_heads;
    let source = (token * params.kv_heads + own) * params.head_dim + pair;
    let place = (row * params.kv_heads + own) * params.head_dim + pair;
    values[place] = out_t(value[source]);
    values[place + half] = out_t(value[source + half]);
}
