// Inputs of linear layers, rounded to numbers of eight bits times a scale, and what those are: of each row a scale of its own, or one that
// is given. The nearest number is found by comparing distances, so that every device finds the same. One workgroup: one row.
@group(0) @binding(0) var<storage, read> x: array<act>;                  // (rows, columns)
@group(0) @binding(1) var<storage, read_write> result: array<out_t>;     // (rows, columns)
#import params
override WORKGROUP: u32;
#import reduce
#import minifloat
#import e4m3_bits

// The number of a place in the order of those that there are, the lowest of magnitude first: integers, or floats of E4M3.
fn number(place: i32) -> f32 {
    if params.float == 0u {
        return f32(place);
    }
    let magnitude = minifloat(u32(abs(place)), 4u, 3u);
    return select(magnitude, -magnitude, place < 0);
}

// The value nearest to `value`, and of two the lower one.
fn nearest_number(value: f32, scale: f32) -> f32 {
    if scale == 0.0 {
        return 0.0;
    }
    var near = i32(clamp(round(value / scale), -128.0, 127.0));
    var ends = vec2<i32>(-128, 127);
    if params.float == 1u {
        let bits = e4m3_bits(clamp(value / scale, -448.0, 448.0));
        near = select(i32(bits & 0x7fu), -i32(bits & 0x7fu), bits >= 0x80u);
        ends = vec2<i32>(-126, 126);
    }
    var best = 0.0;
    var least = 0.0;
    for (var step = -1; step <= 1; step++) {
        let candidate = number(clamp(near + step, ends.x, ends.y)) * scale;
        let distance = abs(value - candidate);
        if step == -1 || distance < least {
            best = candidate;
            least = distance;
        }
    }
    return best;
}

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    var largest = 0.0;
    var infinite = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let bits = bitcast<u32>(f32(x[base + column])) & 0x7fffffffu;
        let finite = bits < 0x7f800000u;
        largest = max(largest, bitcast<f32>(select(0u, bits, finite)));
        infinite = max(infinite, select(1.0, 0.0, finite));
    }
    infinite = reduce_max(infinite, lane);
    var scale = params.scale;
    if scale == 0.0 {
        scale = reduce_max(largest, lane) * params.share;
    }
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let bits = bitcast<u32>(nearest_number(f32(x[base + column]), scale));
        result[base + column] = out_t(bitcast<f32>(select(bits, 0x7fc00000u, infinite > 0.0)));
    }
}
