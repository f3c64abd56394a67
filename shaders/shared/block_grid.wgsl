// What a block's sum of codes times activations is multiplied by, and what its sum of activations is, to make its products.
// Needs: scales, params.scale_words, params.group_shift.

// Codes of eight bits are taken as signed bytes, 128 less.
const LESS: f32 = select(0.0, 128.0, BITS == 8u);

fn block_grid(row: u32, block: u32) -> vec2<f32> {
    let group = (block * 32u) >> params.group_shift;
    if SCALE == 1u || SCALE == 4u {
        let pair = unpack2x16float(scales[row * params.scale_words + (group >> 1u)]);
        let scale = select(pair.x, pair.y, (group & 1u) == 1u);
        // Levels are ternary: -1, 0, 1.
        let zero = select(f32(1u << (BITS - 1u)), 1.0, SCALE == 4u);
        return vec2(scale, -scale * (zero - LESS));
    }
    let pair = unpack2x16float(scales[row * params.scale_words + group]);
    if SCALE == 2u {
        return vec2(pair.x, -pair.x * (pair.y - LESS));
    }
    return vec2(pair.x, pair.y + pair.x * LESS);
}
