// The code whose value is nearest to another, on a group's grid: scale and second number, for a symmetric group its zero
// point. Found by comparing distances, which are exact or rounded once, so every device gives the same; a tie goes to the
// lower code. Needs: SCALE, BITS.
fn decoded(code: f32, line: vec2<f32>) -> f32 {
    if SCALE == 3u {
        return line.x * code + line.y;
    }
    return line.x * (code - line.y);
}

fn away(value: f32, code: u32, line: vec2<f32>) -> f32 {
    return abs(value - decoded(f32(code), line));
}

fn nearest(value: f32, line: vec2<f32>) -> u32 {
    let last = f32((1u << BITS) - 1u);
    if line.x == 0.0 {
        return select(0u, 1u << (BITS - 1u), SCALE == 1u);
    }
    var guess = value / line.x + line.y;
    if SCALE == 3u {
        guess = (value - line.y) / line.x;
    }
    guess = round(clamp(guess, 0.0, last));
    var best = u32(max(guess - 1.0, 0.0));
    let end = u32(min(guess + 1.0, last));
    for (var candidate = u32(guess); candidate <= end; candidate++) {
        if away(value, candidate, line) < away(value, best, line) {
            best = candidate;
        }
    }
    // Where the grid is finer than f32 at this value, several codes stand equally near.
    while best > 0u && away(value, best - 1u, line) <= away(value, best, line) {
        best--;
    }
    return best;
}
