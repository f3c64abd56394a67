// Rows of an expert's result to the rows of their tokens, times the expert's share of each, or as they are. One invocation: one
// element.
@group(0) @binding(0) var<storage, read> branch: array<act>;           // (rows, width)
@group(0) @binding(1) var<storage, read> shares: array<f32>;           // (tokens, experts)
@group(0) @binding(2) var<storage, read> token_of: array<u32>;         // (rows)
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (tokens, width)
#import params
override WORKGROUP: u32;
#import is_nan

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let row = index / params.width;
    if row >= params.rows {
        return;
    }
    var token = row;
    if params.listed == 1u {
        token = token_of[row];
    }
    var share = 1.0;
    if params.weighted == 1u {
        share = shares[token * params.experts + params.expert];
    }
    // What did not come from the token may be anything.
    if share != 0.0 || is_nan(share) {
        result[token * params.width + index - row * params.width] += share * f32(branch[index]);
    }
}
