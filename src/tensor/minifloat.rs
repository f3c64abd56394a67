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

/// The value of f16 bits: its digits under an exponent 112 too small, times 2^112. Unlike the crate's conversion it does not ask
/// at each call which instructions there are, and so can be computed side by side with others.
#[inline(always)]
pub fn half_value(bits: u16) -> f32 {
    let (magnitude, sign) = (u32::from(bits & 0x7fff) << 13, u32::from(bits & 0x8000) << 16);
    let value = if bits & 0x7c00 == 0x7c00 {
        magnitude | 0x7f80_0000
    } else {
        (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits()
    };
    f32::from_bits(value | sign)
}

/// The bits of the nearest f16, of two the even one; infinity from 65520 on.
#[inline(always)]
pub fn half_bits(value: f32) -> u16 {
    let (magnitude, sign) = (value.to_bits() & 0x7fff_ffff, value.to_bits() >> 16 & 0x8000);
    let bits = if magnitude > 0x7f80_0000 {
        0x7e00 | (magnitude >> 13 & 0x3ff)
    } else if magnitude >= 0x477f_f000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below 2^-14: added to 1/2, f32 keeps what f16 does.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        let odd = magnitude >> 13 & 1;
        (magnitude - (112 << 23) + 0xfff + odd) >> 13
    };
    (sign | bits) as u16
}
