// Codes of the values nearest to a matrix, on the grid that its scales span. One invocation: one block of 32 codes, that
// is BITS whole words. The nearest code is found by comparing distances, which are exact or rounded once, so every
// device gives the same bits; a tie goes to the lower code.
@group(0) @binding(0) var<storage, read> weight: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;      // (rows, code_words)
#import params
override WORKGROUP: u32;
#import store_block

// Scale and second number of a column's group; for a symmetric group the second is its zero point.
fn grid(row: u32, column: u32) -> vec2<f32> {
    let group = column >> params.group_shift;
    if SCALE == 1u {
        let pair = unpack2x16float(scales[row * params.scale_words + (group >> 1u)]);
        return vec2(select(pair.x, pair.y, (group & 1u) == 1u), f32(1u << (BITS - 1u)));
    }
    return unpack2x16float(scales[row * params.scale_words + group]);
}

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

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let blocks = (params.columns + 31u) / 32u;
    let row = index / blocks;
    if row >= params.rows {
        return;
    }
    let first = (index - row * blocks) * 32u;
    let end = min(first + 32u, params.columns);
    for (var column = first; column < end; column++) {
        put_code(nearest(weight[row * params.columns + column], grid(row, column)), column - first);
    }
    store_block(row * params.code_words + first / 32u * BITS);
}
