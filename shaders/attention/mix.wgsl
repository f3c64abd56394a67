// Rows of a cache, summed by the weights that tokens give them. One workgroup: one head of one token; its lanes take a column
// each.
@group(0) @binding(0) var<storage, read> weights: array<f32>;          // (tokens of the call, heads, columns)
@group(0) @binding(1) var<storage, read> value: array<act>;            // (sequences, capacity, heads, head_dim)
@group(0) @binding(2) var<storage, read> ends: array<u32>;             // (sequences) keys, or those before the first token
@group(0) @binding(3) var<storage, read_write> result: array<out_t>;   // (all tokens, heads, head_dim)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
#import attention_row
    for (var column = lane; column < params.head_dim; column += WORKGROUP) {
        var sum = 0.0;
        for (var i = 0u; i < count; i++) {
            sum += weights[line + i] * f32(value[keys + i * pitch + column]);
        }
        result[own + column] = out_t(sum * params.scale);
    }
}
