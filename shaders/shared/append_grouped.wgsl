// A value as the nearest code of its group's grid, made of the group's smallest and largest value and stored. Groups are 16
// or 32 columns, each of as many neighbouring lanes; a group that is not finite, or too large for f16, gets an infinite
// scale. Every lane must call. Needs: SCALE 1 or 3, BITS, WORKGROUP, scales.
#import f16_bits
#import nearest_code
var<workgroup> lows: array<f32, WORKGROUP>;
var<workgroup> highs: array<f32, WORKGROUP>;
var<workgroup> marks: array<u32, WORKGROUP>;

const ABOVE_ALL: f32 = 3.0e38;

// Scale and second number of a group, both f16. A zero has no sign here: devices may lose or keep that of -0.
fn mark_of(low: f32, high: f32) -> u32 {
    if SCALE == 3u {
        return f16_bits((high - low) * params.factor) | select(f16_bits(low), 0u, low == 0.0) << 16u;
    }
    var extreme = max(high, -low);
    if params.signed_max == 1u && high < -low {
        extreme = low;
    }
    return select(f16_bits(extreme * params.factor), 0u, extreme == 0.0);
}

fn rounded_code(value: f32, lane: u32, row: u32, column: u32) -> u32 {
    let columns = 1u << min(params.group_shift, 5u);
    let finite = (bitcast<u32>(value) & 0x7fffffffu) < 0x7f800000u;
    lows[lane] = select(-ABOVE_ALL, value, finite);
    highs[lane] = select(ABOVE_ALL, value, finite);
    workgroupBarrier();
    for (var step = 1u; step < columns; step *= 2u) {
        if (lane & (2u * step - 1u)) == 0u {
            lows[lane] = min(lows[lane], lows[lane + step]);
            highs[lane] = max(highs[lane], highs[lane + step]);
        }
        // At the end: NVIDIA's OpenGL loses a barrier that opens a loop.
        workgroupBarrier();
    }
    let first = lane & ~(columns - 1u);
    let mark = mark_of(lows[first], highs[first]);
    let group = column / columns;
    let exists = column < params.width;
    marks[lane] = select(0u, mark, exists);
    workgroupBarrier();
    // Of symmetric types two groups share a word.
    let per_word = select(1u, 2u, SCALE == 1u);
    if exists && (lane & (per_word * columns - 1u)) == 0u {
        var word = mark;
        if SCALE == 1u {
            word |= marks[lane + columns] << 16u;
        }
        scales[row * params.scale_words + group / per_word] = word;
    }
    let pair = unpack2x16float(mark);
    // A scale that is not finite takes the code 0, which it turns into infinity or NaN.
    if (mark & 0x7c00u) == 0x7c00u {
        return 0u;
    }
    return nearest(value, vec2(pair.x, select(pair.y, f32(1u << (BITS - 1u)), SCALE == 1u)));
}
