// Gradient of the shares of experts at their logits: probability * (grad - sum of all shares * grads). Where shares add up to 1 an
// expert that a token does not go to has no probability; otherwise it has that of the softmax, and no grad. One invocation: one token
// and expert.
@group(0) @binding(0) var<storage, read> logits: array<f32>;           // (tokens, experts), read where shares do not add up to 1
@group(0) @binding(1) var<storage, read> shares: array<f32>;           // (tokens, experts)
@group(0) @binding(2) var<storage, read> grad: array<f32>;             // (tokens, experts), anything where the share is 0
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (tokens, experts)
#import params
override WORKGROUP: u32;
#import is_nan

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let token = index / params.experts;
    if token >= params.tokens {
        return;
    }
    let base = token * params.experts;
    let share = shares[index];
    let chosen = share != 0.0;
    var probability = share;
    if !chosen && params.normalized == 0u {
        let own = logits[index];
        var most = own;
        var broken = 0.0;
        for (var other = 0u; other < params.experts; other++) {
            let logit = logits[base + other];
            most = max(most, logit);
            if is_nan(logit) {
                broken = logit;
            }
        }
        // Infinite logits are as good as each other.
        var total = 0.0;
        for (var other = 0u; other < params.experts; other++) {
            let logit = logits[base + other];
            total += exp(select(max(logit - most, -100.0), 0.0, logit == most));
        }
        probability = exp(select(max(own - most, -100.0), 0.0, own == most)) / total;
        probability = select(probability, broken, is_nan(broken));
    }
    var value = 0.0;
    if probability != 0.0 || is_nan(probability) {
        var sum = 0.0;
        for (var other = 0u; other < params.experts; other++) {
            let of_other = shares[base + other];
            if of_other != 0.0 {
                sum += of_other * grad[base + other];
            }
        }
        value = probability * (select(0.0, grad[index], chosen) - sum);
    }
    result[index] = value;
}
