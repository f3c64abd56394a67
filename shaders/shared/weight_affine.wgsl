// Four weights of a row, affine codes of BITS bits. SCALE: 1 symmetric, 2 zero point, 3 offset (src/tensor/weight.rs).
// Needs: codes, scales, params.code_words, params.scale_words, params.group_shift (log2 of the group's columns; 31: one
// group per row). `column` is a multiple of 4, so that four columns never straddle two groups.
#import codes4

fn weight4(row: u32, column: u32) -> vec4<f32> {
    let code = vec4<f32>(codes4(row, column));
    let group = column >> params.group_shift;
    if SCALE == 1u {
        let pair = unpack2x16float(scales[row * params.scale_words + (group >> 1u)]);
        let scale = select(pair.x, pair.y, (group & 1u) == 1u);
        return scale * (code - vec4(f32(1u << (BITS - 1u))));
    }
    let pair = unpack2x16float(scales[row * params.scale_words + group]);
    if SCALE == 2u {
        return pair.x * (code - vec4(pair.y));
    }
    return pair.x * code + vec4(pair.y);
}
