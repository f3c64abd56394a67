// A block of 32 SPAN activations as integers of PLANES bytes with a power of two as scale: the least for which the largest
// magnitude fits, so that scaling is exact and only the rounding to integers loses anything. Byte planes stand apart, the
// lowest first, each byte signed: an integer is low + 256 * high. Blocks with NaN or infinity get the scale NaN.
// Needs: PLANES, SPAN, x_codes.

// The largest integer of PLANES signed bytes, and the exponent of the largest magnitude beside the scale's.
const LARGEST: f32 = select(select(8355711.0, 32639.0, PLANES == 2u), 127.0, PLANES == 1u);
const ABOVE: u32 = 8u * PLANES - 2u;
// Smaller magnitudes, below 2^-97, become 0 rather than meet a scale that is no normal f32.
const LEAST: u32 = 30u;

// Stores the integers; returns their scale, and the scale times their sum.
fn store_integers(values: array<vec4<f32>, 8u * SPAN>, token: u32, block: u32, blocks: u32) -> vec2<f32> {
    var all = values;
    var largest = 0u;
    for (var i = 0u; i < 8u * SPAN; i++) {
        let magnitudes = bitcast<vec4<u32>>(all[i]) & vec4(0x7fffffffu);
        largest = max(largest, max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w)));
    }
    var exponent = max(largest >> 23u, LEAST) - ABOVE;
    let finite = largest < 0x7f800000u;
    if finite && bitcast<f32>(largest) * bitcast<f32>((254u - exponent) << 23u) > LARGEST {
        exponent++;
    }
    let inverse = bitcast<f32>((254u - exponent) << 23u);
    var sum = 0;
    var planes: array<vec4<u32>, 2u * SPAN * PLANES>;
    for (var i = 0u; i < 8u * SPAN; i++) {
        var rest = vec4(0);
        if finite {
            rest = vec4<i32>(round(all[i] * inverse));
        }
        sum += rest.x + rest.y + rest.z + rest.w;
        for (var plane = 0u; plane < PLANES; plane++) {
            planes[2u * SPAN * plane + i / 4u][i & 3u] = pack4xI8(rest);
            // What is left after the lowest byte, taken as signed, is a multiple of 256.
            rest = (rest + vec4(128)) >> vec4(8u);
        }
    }
    for (var piece = 0u; piece < 2u * SPAN * PLANES; piece++) {
        x_codes[(token * 2u * SPAN * PLANES + piece) * blocks + block] = planes[piece];
    }
    let scale = bitcast<f32>(select(0x7fc00000u, exponent << 23u, finite));
    return vec2(scale, scale * f32(sum));
}
