// Scale and zero point, or scale and offset, of groups from their smallest and largest value. One invocation: one group.
// Sums and products here are exact or rounded once, so every device gives the same bits.
@group(0) @binding(0) var<storage, read> weight: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read_write> scales: array<u32>;     // (rows, groups)
#import params
override WORKGROUP: u32;
#import f16_bits

fn rounded(value: f32) -> f32 {
    return unpack2x16float(f16_bits(value)).x;
}

// The integer nearest to -low / scale, by trying the neighbours of the quotient: a division may be off by a few ulp,
// a comparison may not. Ties go to the lower.
fn nearest_zero(low: f32, scale: f32) -> f32 {
    let guess = round(-low / scale);
    var best = guess - 1.0;
    // Counted in integers: beyond 2^24 adding 1 to a float may change nothing.
    for (var i = 0u; i < 2u; i++) {
        let candidate = guess + f32(i);
        if abs(low + scale * candidate) < abs(low + scale * best) {
            best = candidate;
        }
    }
    return best;
}

// An integer as f16 bits. A zero has no sign here: devices may lose or keep that of -0.
fn integer_bits(value: f32) -> u32 {
    return select(f16_bits(value), 0u, value == 0.0);
}

fn zero_point(low: f32, high: f32) -> u32 {
    var scale = rounded((high - low) * params.factor);
    if scale == 0.0 {
        // All alike, or nearly: one step away from zero.
        scale = rounded(abs(low));
        let zero = select(0.0, select(-1.0, 1.0, low < 0.0), scale > 0.0);
        return f16_bits(scale) | integer_bits(zero) << 16u;
    }
    var zero = nearest_zero(low, scale);
    if !(abs(zero) <= 2048.0) {
        // Beyond the integers that f16 holds: the range is widened to include zero.
        let least = min(low, 0.0);
        scale = rounded((max(high, 0.0) - least) * params.factor);
        zero = nearest_zero(least, scale);
    }
    return f16_bits(scale) | integer_bits(zero) << 16u;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let row = index / params.groups;
    if row >= params.rows {
        return;
    }
    let first = (index - row * params.groups) * params.group_columns;
    let end = min(first + params.group_columns, params.columns);
    var low = weight[row * params.columns + first];
    var high = low;
    for (var column = first + 1u; column < end; column++) {
        let value = weight[row * params.columns + column];
        low = min(low, value);
        high = max(high, value);
    }
    if params.offset == 0u {
        scales[index] = zero_point(low, high);
    } else {
        scales[index] = f16_bits((high - low) * params.factor) | f16_bits(low) << 16u;
    }
}
