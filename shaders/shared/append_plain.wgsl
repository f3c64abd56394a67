// A value as plain bits of the cache's type, f32 or f16. There is one NaN of f32: which one f16's becomes is the device's choice.
// Needs: BITS.
#import f16_bits
#import is_nan

fn rounded_code(value: f32, lane: u32, row: u32, column: u32) -> u32 {
    if BITS == 32u {
        return select(bitcast<u32>(value), 0x7fc00000u, is_nan(value));
    }
    return f16_bits(value);
}
