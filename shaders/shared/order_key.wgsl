// An integer that orders as the score does: NaN is 0, below every other; the two zeros are one. By bits, so that no device
// takes a small number for zero.
#import is_nan

fn order_key(score: f32) -> u32 {
    var bits = bitcast<u32>(score);
    bits = select(bits, 0u, bits == 0x80000000u);
    let key = select(bits | 0x80000000u, ~bits, bits >> 31u == 1u);
    return select(key, 0u, is_nan(score));
}
