// The largest magnitude of each column of activations. One workgroup: 32 columns, whose rows are shared among 8 lanes each.
@group(0) @binding(0) var<storage, read> x: array<act>;                // (tokens, columns)
@group(0) @binding(1) var<storage, read_write> result: array<f32>;     // (columns)
#import params

const COLUMNS: u32 = 32u;
const SHARES: u32 = 8u;
var<workgroup> parts: array<u32, COLUMNS * SHARES>;

// Bits without the sign have the order of magnitudes, and NaN is above all of them.
fn magnitude(value: f32) -> u32 {
    return bitcast<u32>(value) & 0x7fffffffu;
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let column = (group.y * groups.x + group.x) * COLUMNS + (lane & (COLUMNS - 1u));
    var largest = 0u;
    if column < params.columns {
        let end = params.token_start + params.tokens;
        for (var token = params.token_start + lane / COLUMNS; token < end; token += SHARES) {
            largest = max(largest, magnitude(f32(x[token * params.columns + column])));
        }
    }
    parts[lane] = largest;
    workgroupBarrier();
    if lane < COLUMNS && column < params.columns {
        for (var share = 1u; share < SHARES; share++) {
            largest = max(largest, parts[share * COLUMNS + lane]);
        }
        if params.accumulate == 1u {
            largest = max(largest, magnitude(result[column]));
        }
        result[column] = bitcast<f32>(largest);
    }
}
