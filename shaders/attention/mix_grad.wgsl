// What every key has of the tokens that see it: their rows, summed by the weights that they give the key. One workgroup: one head
// of one key; its lanes take a column each.
@group(0) @binding(0) var<storage, read> weights: array<f32>;          // (tokens of the call, heads, columns)
@group(0) @binding(1) var<storage, read> x: array<f32>;                // (all tokens, heads, head_dim)
@group(0) @binding(2) var<storage, read_write> result: array<f32>;     // (sequences, capacity, heads, head_dim)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let each = params.tokens_per_sequence;
    if index >= params.tokens / each * params.columns * params.heads {
        return;
    }
    let head = index % params.heads;
    let key = index / params.heads % params.columns;
    let within = index / params.heads / params.columns;
    let sequence = params.token_start / each + within;
    let to = ((sequence * params.capacity + params.first + key) * params.heads + head) * params.head_dim;
    for (var column = lane; column < params.head_dim; column += WORKGROUP) {
        var sum = 0.0;
        for (var order = 0u; order < each; order++) {
            let weight = weights[((within * each + order) * params.heads + head) * params.columns + key];
            sum += weight * x[((sequence * each + order) * params.heads + head) * params.head_dim + column];
        }
        result[to + column] = sum * params.scale;
    }
}
