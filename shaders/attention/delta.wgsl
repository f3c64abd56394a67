// The dot product of attention's result and its gradient, of each head of a token. One workgroup: 32 rows, four invocations
// each.
@group(0) @binding(0) var<storage, read> result: array<vec4<f32>>;           // (rows, head_dim)
@group(0) @binding(1) var<storage, read> grad: array<vec4<act>>;             // (rows, head_dim)
@group(0) @binding(2) var<storage, read_write> lse_delta: array<vec2<f32>>;  // (rows) log-sum-exp, product
#import params

var<workgroup> products: array<f32, 128>;

@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = (group.y * groups.x + group.x) * 32u + lane / 4u;
    let fours = params.head_dim / 4u;
    var product = 0.0;
    if row < params.rows {
        for (var four = lane % 4u; four < fours; four += 4u) {
            product += dot(result[row * fours + four], vec4<f32>(grad[row * fours + four]));
        }
    }
    products[lane] = product;
    workgroupBarrier();
    if lane % 4u == 0u && row < params.rows {
        lse_delta[row].y = (products[lane] + products[lane + 1u]) + (products[lane + 2u] + products[lane + 3u]);
    }
}
