// The token that was chosen becomes the next one: it is what the next pass reads, and the cache holds one token more. It is told with
// its logits' log-sum-exp. One invocation: one sequence.
@group(0) @binding(0) var<storage, read> chosen: array<u32>;           // (sequences)
@group(0) @binding(1) var<storage, read> lse: array<f32>;              // (sequences)
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;        // (sequences)
@group(0) @binding(3) var<storage, read_write> past: array<u32>;       // (sequences)
@group(0) @binding(4) var<storage, read_write> told: array<u32>;       // (sequences, 2)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let sequence = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if sequence >= params.sequences {
        return;
    }
    let token = chosen[sequence];
    ids[sequence] = token;
    past[sequence] += 1u;
    told[2u * sequence] = token;
    told[2u * sequence + 1u] = bitcast<u32>(lse[sequence]);
}
