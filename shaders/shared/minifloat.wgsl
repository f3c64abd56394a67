// A float of few bits as f32, exact: sign, exponent, mantissa, with subnormals. Four exponent bits: only the highest code
// is NaN. Five: the highest exponent is infinity and NaN. Two: all finite.
fn minifloat(code: u32, exponent_bits: u32, mantissa_bits: u32) -> f32 {
    let magnitude = code & ((1u << (exponent_bits + mantissa_bits)) - 1u);
    let sign = (code >> (exponent_bits + mantissa_bits)) << 31u;
    let exponent = magnitude >> mantissa_bits;
    let bias = (1u << (exponent_bits - 1u)) - 1u;
    // A subnormal is its fraction with the lowest exponent, less that exponent's power of two.
    let subnormal = exponent == 0u;
    let raised = magnitude + select(0u, 1u << mantissa_bits, subnormal);
    let less = select(0.0, bitcast<f32>((128u - bias) << 23u), subnormal);
    let value = bitcast<f32>((raised << (23u - mantissa_bits)) + ((127u - bias) << 23u)) - less;
    var bits = bitcast<u32>(value);
    if exponent_bits == 4u && magnitude == 0x7fu {
        bits = 0x7fc00000u;
    } else if exponent_bits == 5u && exponent == 31u {
        bits = 0x7f800000u | (magnitude << (23u - mantissa_bits));
    }
    return bitcast<f32>(sign | bits);
}
