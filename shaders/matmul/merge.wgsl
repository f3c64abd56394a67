// The parts of a product that was split along its columns, added up in order, and what becomes of the sum. One invocation:
// one result.
#import matmul_params
@group(0) @binding(0) var<storage, read> sums: array<f32>;             // (parts, tokens, rows)
@group(0) @binding(1) var<storage, read> bias: array<f32>;             // (out_stride), or one unused value
@group(0) @binding(2) var<storage, read_write> result: array<out_t>;   // (all tokens, out_stride)
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let token = index / params.rows;
    if token >= params.tokens {
        return;
    }
    var sum = 0.0;
    for (var part = 0u; part < params.splits; part++) {
        sum += sums[part * params.tokens * params.rows + index];
    }
    store_result(token, index - token * params.rows, sum);
}
