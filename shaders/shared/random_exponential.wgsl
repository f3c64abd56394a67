// A number of the standard exponential distribution for each key: -log(1 - u) of a u that is uniform between 0 and 1.
#import pcg4d

fn random_exponential(key: vec4<u32>) -> f32 {
    let hash = pcg4d(key);
    // Of u and 1 - u the smaller: neither loses its bits in a difference from 1.
    let low = hash < 0x80000000u;
    let share = (f32(select(~hash, hash, low)) + 0.5) * 2.3283064365386963e-10;
    // -log(1 - share) = 2 artanh(s), by its series; s is at most a third.
    let s = share / (2.0 - share);
    let q = s * s;
    let series = 2.0 * s * (1.0 + q * (0.33333334 + q * (0.2 + q * (0.14285715 + q * (0.11111111 + q * (0.09090909 + q * (0.07692308 + q * 0.06666667)))))));
    return select(-log(share), series, low);
}
