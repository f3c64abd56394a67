// Scales of symmetric groups from their largest magnitude. One invocation: one word, that is the f16 scales of two
// groups of one row. Sums and products here are exact or rounded once, so every device gives the same bits.
@group(0) @binding(0) var<storage, read> weight: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read_write> scales: array<u32>;     // (rows, scale_words)
#import params
override WORKGROUP: u32;
#import f16_bits

fn pair_scale(row: u32, first: u32) -> u32 {
    if first >= params.columns {
        return 0u;
    }
    let end = min(first + params.group_columns, params.columns);
    var extreme = 0.0;
    for (var column = first; column < end; column++) {
        let value = weight[row * params.columns + column];
        if abs(value) > abs(extreme) {
            extreme = value;
        }
    }
    if params.signed_max == 0u {
        extreme = abs(extreme);
    }
    return f16_bits(extreme * params.factor);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let row = index / params.scale_words;
    if row >= params.rows {
        return;
    }
    let first = (index - row * params.scale_words) * 2u * params.group_columns;
    scales[index] = pair_scale(row, first) | pair_scale(row, first + params.group_columns) << 16u;
}
