// What a code stands for: a float of EXPONENT and MANTISSA bits.
#import minifloat

fn level(code: u32) -> f32 {
    return minifloat(code, EXPONENT, MANTISSA);
}
