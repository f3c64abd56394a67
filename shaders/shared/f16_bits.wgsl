// f32 to the bits of the nearest f16, ties to even, in integers: WGSL leaves the rounding of a conversion to the device,
// and scales must come out alike everywhere. Too large becomes infinity, and so does NaN, which callers refuse before.
fn f16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude >= 0x47800000u {
        return sign | 0x7c00u;
    }
    if magnitude < 0x38800000u {
        // Below 2^-14: a multiple of 2^-24. The shift is at least 14 for the smallest f16 normal.
        let exponent = magnitude >> 23u;
        if exponent < 102u {
            return sign;
        }
        let significand = (magnitude & 0x7fffffu) | 0x800000u;
        let shift = 126u - exponent;
        let kept = significand >> shift;
        let rest = significand & ((1u << shift) - 1u);
        let half = 1u << (shift - 1u);
        let up = rest > half || (rest == half && (kept & 1u) == 1u);
        return sign | (kept + select(0u, 1u, up));
    }
    let rebased = magnitude - 0x38000000u;
    let kept = rebased >> 13u;
    let rest = rebased & 0x1fffu;
    let up = rest > 0x1000u || (rest == 0x1000u && (kept & 1u) == 1u);
    return sign | (kept + select(0u, 1u, up));
}
