// Each row less its mean. One workgroup: one row.
@group(0) @binding(0) var<storage, read> x: array<f32>;                // (rows, columns)
@group(0) @binding(1) var<storage, read_write> result: array<f32>;     // (rows, columns)
#import params
override WORKGROUP: u32;
#import reduce

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    var sum = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        sum += x[base + column];
    }
    let mean = reduce_sum(sum, lane) / f32(params.columns);
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        result[base + column] = x[base + column] - mean;
    }
}
