// Gradient of the shares of experts at their logits: share * (grad - sum of all shares * grads), 0 for experts that a token
// does not go to. One invocation: one token and expert.
@group(0) @binding(0) var<storage, read> shares: array<f32>;           // (tokens, experts)
@group(0) @binding(1) var<storage, read> grad: array<f32>;             // (tokens, experts), anything where the share is 0
@group(0) @binding(2) var<storage, read_write> result: array<f32>;     // (tokens, experts)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let token = index / params.experts;
    if token >= params.tokens {
        return;
    }
    let own = shares[index];
    var value = 0.0;
    if own != 0.0 {
        let base = token * params.experts;
        var sum = 0.0;
        for (var other = 0u; other < params.experts; other++) {
            let share = shares[base + other];
            if share != 0.0 {
                sum += share * grad[base + other];
            }
        }
        value = own * (grad[index] - sum);
    }
    result[index] = value;
}
