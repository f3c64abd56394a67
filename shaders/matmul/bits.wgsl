// Activations as bit planes, for products by counting bits. One invocation: one block of 32 columns of one token, as integers
// of ACT_BITS bits in two's complement with a power of two as scale: the least for which the largest magnitude fits, so that
// only the rounding to integers loses anything. One bit is a sign, set below zero, and the scale the mean of the
// magnitudes. Blocks with NaN or infinity get the scale NaN.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;                // (all tokens, columns, padded to fours)
@group(0) @binding(1) var<storage, read_write> x_planes: array<u32>;         // (tokens, units, ACT_BITS, 4)
@group(0) @binding(2) var<storage, read_write> x_scales: array<vec2<f32>>;   // (tokens, units, 4): scale, scale * sum
#import params
override WORKGROUP: u32;

// The largest integer, and the exponent of the largest magnitude beside the scale's.
const LARGEST: f32 = f32((1u << (ACT_BITS - 1u)) - 1u);
const ABOVE: u32 = max(ACT_BITS, 2u) - 2u;
// Smaller magnitudes, below 2^-97, become 0 rather than meet a scale that is no normal f32.
const LEAST: u32 = 30u;

// Signs of a block's first `count` columns, what is behind them being zero.
fn store_signs(values: array<vec4<f32>, 8>, unit: u32, index: u32, count: u32, finite: bool) {
    var all = values;
    var word = 0u;
    var total = 0.0;
    for (var quad = 0u; quad < 8u; quad++) {
        let below = select(vec4(0u), vec4(1u), all[quad] < vec4(0.0));
        word |= dot(below, vec4(1u, 1u << 8u, 1u << 16u, 1u << 24u)) << quad;
        total += dot(abs(all[quad]), vec4(1.0));
    }
    x_planes[unit * 4u + index % 4u] = select(0u, word, finite);
    let mean = total / f32(max(count, 1u));
    let scale = bitcast<f32>(select(0x7fc00000u, bitcast<u32>(mean), finite));
    x_scales[index] = vec2(scale, scale * (f32(count) - 2.0 * f32(countOneBits(word))));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let blocks = (params.columns + 127u) / 128u * 4u;
    let token = index / blocks;
    if token >= params.tokens {
        return;
    }
    let block = index - token * blocks;
    let fours = (params.columns + 3u) / 4u;
    var values: array<vec4<f32>, 8>;
    var largest = 0u;
    for (var i = 0u; i < 8u; i++) {
        if block * 8u + i < fours {
            values[i] = vec4<f32>(x[(params.token_start + token) * fours + block * 8u + i]);
        }
        let magnitudes = bitcast<vec4<u32>>(values[i]) & vec4(0x7fffffffu);
        largest = max(largest, max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w)));
    }
    let finite = largest < 0x7f800000u;
    let unit = index / 4u;
    if ACT_BITS == 1u {
        let first = min(block * 32u, params.columns);
        store_signs(values, unit, index, min(params.columns - first, 32u), finite);
        return;
    }
    var exponent = max(largest >> 23u, LEAST) - ABOVE;
    if finite && bitcast<f32>(largest) * bitcast<f32>((254u - exponent) << 23u) > LARGEST {
        exponent++;
    }
    let inverse = bitcast<f32>((254u - exponent) << 23u);
    var sum = 0;
    var words: array<u32, ACT_BITS>;
    for (var quad = 0u; quad < 8u; quad++) {
        var four = vec4(0);
        if finite {
            four = vec4<i32>(round(values[quad] * inverse));
        }
        sum += four.x + four.y + four.z + four.w;
        for (var plane = 0u; plane < ACT_BITS; plane++) {
            // Column 4 quad + i is bit 8 i + quad, as in the weight's planes.
            let bits = (bitcast<vec4<u32>>(four) >> vec4(plane)) & vec4(1u);
            words[plane] |= dot(bits, vec4(1u, 1u << 8u, 1u << 16u, 1u << 24u)) << quad;
        }
    }
    for (var plane = 0u; plane < ACT_BITS; plane++) {
        x_planes[(unit * ACT_BITS + plane) * 4u + index % 4u] = words[plane];
    }
    let scale = bitcast<f32>(select(0x7fc00000u, exponent << 23u, finite));
    x_scales[index] = vec2(scale, scale * f32(sum));
}
