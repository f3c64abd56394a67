// Gradient of the balance loss at the router's logits: factor * probability * (tokens of the expert - the mean of that over the
// token's probabilities). One invocation: one token and expert.
@group(0) @binding(0) var<storage, read> logits: array<f32>;           // (tokens, experts)
@group(0) @binding(1) var<storage, read> sums: array<f32>;             // (2, experts): tokens; the rest is not read
@group(0) @binding(2) var<storage, read_write> result: array<f32>;     // (tokens, experts)
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
    var weighed = 0.0;
    for (var other = 0u; other < params.experts; other++) {
        let logit = logits[base + other];
        let term = exp(select(max(logit - most, -100.0), 0.0, logit == most));
        total += term;
        weighed += term * sums[other];
    }
    let probability = exp(select(max(own - most, -100.0), 0.0, own == most)) / total;
    let value = params.factor * (probability * (sums[index - base] - weighed / total));
    result[index] = select(value, broken, is_nan(broken));
}
