// Of each token the numbers of its experts, in order. Places that are left have the number of experts. One invocation: one token.
@group(0) @binding(0) var<storage, read> shares: array<f32>;           // (tokens, experts)
@group(0) @binding(1) var<storage, read_write> chosen: array<u32>;     // (tokens, used)
#import params
override WORKGROUP: u32;
#import is_nan

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let token = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if token >= params.tokens {
        return;
    }
    var found = 0u;
    for (var expert = 0u; expert < params.experts; expert++) {
        let share = shares[token * params.experts + expert];
        if (share != 0.0 || is_nan(share)) && found < params.used {
            chosen[token * params.used + found] = expert;
            found++;
        }
    }
    for (; found < params.used; found++) {
        chosen[token * params.used + found] = params.experts;
    }
}
