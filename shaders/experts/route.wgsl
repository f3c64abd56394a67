// Of each token the shares of its experts: the softmax of its `used` largest logits, or what they have of the softmax of all, 0 for
// the others. Of equal logits the first go first. One workgroup: one token.
@group(0) @binding(0) var<storage, read> logits: array<f32>;           // (tokens, experts)
@group(0) @binding(1) var<storage, read_write> shares: array<f32>;     // (tokens, experts)
#import params
override WORKGROUP: u32;
#import reduce
#import is_nan

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let token = group.y * groups.x + group.x;
    if token >= params.tokens {
        return;
    }
    let base = token * params.experts;
    var sum = 0.0;
    var broken = 0.0;
    for (var expert = lane.index; expert < params.experts; expert += WORKGROUP) {
        let own = logits[base + expert];
        var before = 0u;
        var most = own;
        for (var other = 0u; other < params.experts; other++) {
            let logit = logits[base + other];
            before += u32(logit > own || (logit == own && other < expert));
            most = max(most, logit);
            if is_nan(logit) {
                broken = logit;
            }
        }
        // Infinite logits are as good as each other.
        let below = select(max(own - most, -100.0), 0.0, own == most);
        let term = exp(below);
        let share = select(0.0, term, before < params.used);
        sum += select(term, share, params.normalized == 1u);
        shares[base + expert] = share;
    }
    let total = reduce_sum(sum, lane);
    for (var expert = lane.index; expert < params.experts; expert += WORKGROUP) {
        let share = shares[base + expert] / total;
        shares[base + expert] = select(share, broken, is_nan(broken));
    }
}
