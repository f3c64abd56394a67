// Sums down the columns of activations: of values, magnitudes or squares. One workgroup: 32 columns.
@group(0) @binding(0) var<storage, read> x: array<act>;                // (tokens, columns)
@group(0) @binding(1) var<storage, read_write> result: array<f32>;     // (columns)
#import params
#import column_shares

fn term(value: f32) -> f32 {
    switch TERM {
        case 0u: { return value; }
        case 1u: { return abs(value); }
        default: { return value * value; }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let column = (group.y * groups.x + group.x) * COLUMNS + (lane & (COLUMNS - 1u));
    var sum = 0.0;
    if column < params.columns {
        let end = params.token_start + params.tokens;
        for (var token = params.token_start + lane / COLUMNS; token < end; token += SHARES) {
            sum += term(f32(x[token * params.columns + column]));
        }
    }
    sum = sum_of_shares(sum, lane);
    if lane < COLUMNS && column < params.columns {
        if params.accumulate == 1u {
            sum += result[column];
        }
        result[column] = sum;
    }
}
