// f32 to the bits of the nearest E4M3, ties to even, in integers, so that every device gives the same. What is too large
// becomes the largest, 448; NaN stays NaN.
fn e4m3_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 24u) & 0x80u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7fu;
    }
    if magnitude < 0x3c800000u {
        // Below 2^-6: a multiple of 2^-9. The shift is at least 21 for the largest, 2^-7 and more.
        let exponent = magnitude >> 23u;
        if exponent < 117u {
            return sign;
        }
        return sign | nearest_even((magnitude & 0x7fffffu) | 0x800000u, 141u - exponent);
    }
    return sign | min(nearest_even(min(magnitude, 0x44000000u) - 0x3c000000u, 20u), 0x7eu);
}

// An integer without so many of its lowest bits, rounded.
fn nearest_even(whole: u32, shift: u32) -> u32 {
    let kept = whole >> shift;
    let rest = whole & ((1u << shift) - 1u);
    let half = 1u << (shift - 1u);
    let up = rest > half || (rest == half && (kept & 1u) == 1u);
    return kept + select(0u, 1u, up);
}
