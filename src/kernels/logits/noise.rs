//! Random numbers without a state: a hash of what they are for. pcg4d of Jarzynski and Olano 2020 ("Hash Functions for GPU Rendering",
//! JCGT 9, listing of section 3), in integers of 32 bits, so that every device has the same.

/// 32 random bits for four words: the last of the hash's words, in which all have met.
pub(super) fn pcg4d(key: [u32; 4]) -> u32 {
    let mut v = key.map(|word| word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let round = |v: &mut [u32; 4]| {
        for (to, (a, b)) in [(0, (1, 3)), (1, (2, 0)), (2, (0, 1)), (3, (1, 2))] {
            v[to] = v[to].wrapping_add(v[a].wrapping_mul(v[b]));
        }
    };
    round(&mut v);
    v = v.map(|word| word ^ (word >> 16));
    round(&mut v);
    v[3]
}

/// Uniform between 0 and 1, both excluded.
pub(super) fn uniform(key: [u32; 4]) -> f64 {
    (f64::from(pcg4d(key)) + 0.5) / f64::powi(2.0, 32)
}

/// Of the standard exponential distribution: -log(1 - u).
pub(super) fn exponential(key: [u32; 4]) -> f64 {
    -(-uniform(key)).ln_1p()
}

/// A seed's two words.
pub(super) fn words(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}
