// The scale of a column's group, for types whose codes are levels. SCALE: 4 f16, 5 power of two, 6 E4M3 times the row's
// f32 (src/tensor/weight.rs). Needs: scales, params.scale_words, params.group_shift.
#import minifloat

fn group_scale(row: u32, column: u32) -> f32 {
    let group = column >> params.group_shift;
    let base = row * params.scale_words;
    if SCALE == 4u {
        let pair = unpack2x16float(scales[base + (group >> 1u)]);
        return select(pair.x, pair.y, (group & 1u) == 1u);
    }
    let start = base + select(0u, 1u, SCALE == 6u);
    let byte = (scales[start + (group >> 2u)] >> (8u * (group & 3u))) & 0xffu;
    if SCALE == 5u {
        // 2^-127 is no normal f32; 255 stands for NaN.
        let bits = select(byte << 23u, 0x400000u, byte == 0u);
        return bitcast<f32>(select(bits, 0x7fc00000u, byte == 255u));
    }
    return bitcast<f32>(scales[base]) * minifloat(byte, 4u, 3u);
}
