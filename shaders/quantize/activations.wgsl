// Activations as integers of PLANES bytes, for integer dot products. One invocation: one
// block of 32 SPAN columns of one token.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;                  // (all tokens, columns, padded to fours)
@group(0) @binding(1) var<storage, read_write> x_codes: array<vec4<u32>>;      // (tokens, 2 SPAN PLANES, blocks)
@group(0) @binding(2) var<storage, read_write> x_scales: array<vec2<f32>>;     // (tokens, blocks)
#import params
override WORKGROUP: u32;
#import integer_block

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let blocks = (params.columns + 32u * SPAN - 1u) / (32u * SPAN);
    let token = index / blocks;
    let block = index - token * blocks;
    if token >= params.tokens {
        return;
    }
    let fours = (params.columns + 3u) / 4u;
    var values: array<vec4<f32>, 8u * SPAN>;
    for (var i = 0u; i < 8u * SPAN; i++) {
        if block * 8u * SPAN + i < fours {
            values[i] = vec4<f32>(x[(params.token_start + token) * fours + block * 8u * SPAN + i]);
        }
    }
    x_scales[token * blocks + block] = store_integers(values, token, block, blocks);
}
