//! Floats of few bits: sign, exponent, mantissa, with subnormals (OCP Microscaling Formats 1.0, 5.3).
//!
//! Of 4 exponent bits only the highest code is NaN and there is no infinity (E4M3); of 5, the highest exponent is infinity
//! and NaN as in IEEE 754 (E5M2); of 2, every code is finite (E2M1).

/// The value of a code, exact in f32.
pub fn decode(code: u32, exponent_bits: u32, mantissa_bits: u32) -> f32 {
    let magnitude = code & ((1 << (exponent_bits + mantissa_bits)) - 1);
    let exponent = magnitude >> mantissa_bits;
    let mantissa = magnitude & ((1 << mantissa_bits) - 1);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let value = if exponent_bits == 4 && magnitude == 0x7f {
        f32::NAN
    } else if exponent_bits == 5 && exponent == 31 {
        if mantissa == 0 { f32::INFINITY } else { f32::NAN }
    } else if exponent == 0 {
        mantissa as f32 * f32::powi(2.0, 1 - bias - mantissa_bits as i32)
    } else {
        let steps = (1u32 << mantissa_bits) + mantissa;
        steps as f32 * f32::powi(2.0, exponent as i32 - bias - mantissa_bits as i32)
    };
    if code >> (exponent_bits + mantissa_bits) & 1 == 1 { -value } else { value }
}

/// The code nearest to a value that is not negative; a tie goes to the even code, what is too large to the largest finite.
pub fn encode_magnitude(value: f32, exponent_bits: u32, mantissa_bits: u32) -> u32 {
    let finite = |code: &u32| decode(*code, exponent_bits, mantissa_bits).is_finite();
    let mut codes = (0..1u32 << (exponent_bits + mantissa_bits)).filter(finite);
    let mut best = 0;
    let mut distance = f32::INFINITY;
    codes.all(|code| {
        let away = (value - decode(code, exponent_bits, mantissa_bits)).abs();
        if away < distance || (away == distance && code % 2 == 0) {
            (best, distance) = (code, away);
        }
        // Codes rise with their values: once they lead away, the nearest is behind.
        away <= distance
    });
    best
}
