// A value as plain bits of the cache's type, f32 or f16. Needs: BITS.
#import f16_bits

fn rounded_code(value: f32, lane: u32, row: u32, column: u32) -> u32 {
    if BITS == 32u {
        return bitcast<u32>(value);
    }
    return f16_bits(value);
}
