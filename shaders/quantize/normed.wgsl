// Root-mean-square normalization and rounding to integers in one pass, for integer dot products. One workgroup: one token.
// Integers are those of x * gain, a product that every device rounds alike; what x is divided by goes into the scales.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;                  // (all tokens, columns); columns in fours
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;               // (columns)
@group(0) @binding(2) var<storage, read_write> x_codes: array<vec4<u32>>;      // (tokens, 2 SPAN PLANES, blocks)
@group(0) @binding(3) var<storage, read_write> x_scales: array<vec2<f32>>;     // (tokens, blocks)
#import params
override WORKGROUP: u32;
#import reduce
#import integer_block

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let token = group.y * groups.x + group.x;
    if token >= params.tokens {
        return;
    }
    let fours = params.columns / 4u;
    let base = (params.token_start + token) * fours;
    var squares = 0.0;
    for (var four = lane.index; four < fours; four += WORKGROUP) {
        squares += dot(x[base + four], x[base + four]);
    }
    let mean = reduce_sum(squares, lane) / f32(params.columns);
    let divided = inverseSqrt(mean + params.epsilon);
    let blocks = (params.columns + 32u * SPAN - 1u) / (32u * SPAN);
    for (var block = lane.index; block < blocks; block += WORKGROUP) {
        var values: array<vec4<f32>, 8u * SPAN>;
        for (var i = 0u; i < 8u * SPAN; i++) {
            let four = block * 8u * SPAN + i;
            if four < fours {
                values[i] = x[base + four] * gain[four];
            }
        }
        x_scales[token * blocks + block] = divided * store_integers(values, token, block, blocks);
    }
}
