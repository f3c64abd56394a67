// The soft cap of Gemma 2: cap * tanh(x / cap). By a polynomial of its own near zero: WGSL's tanh may be off by 1e-5, and
// overflows on some drivers.
#import is_nan

fn soft_capped(x: f32, cap: f32) -> f32 {
    let ratio = x / cap;
    let size = min(abs(ratio), 20.0);
    let square = ratio * ratio;
    var value = 2.06390888e-2 - 5.70498873e-3 * square;
    value = value * square - 5.37397156e-2;
    value = value * square + 1.33314422e-1;
    value = value * square - 3.33332819e-1;
    value = value * square * ratio + ratio;
    let far = sign(ratio) * (1.0 - 2.0 / (exp(2.0 * size) + 1.0));
    // NaN stays NaN, whatever min makes of it.
    return select(cap * select(value, far, size > 0.625), x, is_nan(x));
}

// The derivative where the capped value is y.
fn soft_cap_slope(y: f32, cap: f32) -> f32 {
    let ratio = y / cap;
    return 1.0 - ratio * ratio;
}
