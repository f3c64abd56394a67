// Of each expert the tokens that go there, and the sum of its probabilities, added to what stands in the result. One workgroup: one
// expert.
@group(0) @binding(0) var<storage, read> logits: array<f32>;           // (tokens, experts)
@group(0) @binding(1) var<storage, read> shares: array<f32>;           // (tokens, experts), 0 where a token does not go
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;       // (2, experts): tokens, probabilities
#import params
override WORKGROUP: u32;
#import reduce
#import is_nan

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let expert = group.y * groups.x + group.x;
    if expert >= params.experts {
        return;
    }
    var count = 0.0;
    var sum = 0.0;
    var broken = 0.0;
    for (var token = lane.index; token < params.tokens; token += WORKGROUP) {
        let base = token * params.experts;
        var most = logits[base];
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
        let own = logits[base + expert];
        sum += exp(select(max(own - most, -100.0), 0.0, own == most)) / total;
        let share = shares[base + expert];
        count += select(0.0, 1.0, share != 0.0 || is_nan(share));
    }
    sum = select(sum, broken, is_nan(broken));
    let tokens = reduce_sum(count, lane);
    let probability = reduce_sum(sum, lane);
    if lane.index == 0u {
        sums[expert] += tokens;
        sums[params.experts + expert] += probability;
    }
}
