// Root-mean-square normalization of each row. One workgroup: one row.
@group(0) @binding(0) var<storage, read> x: array<f32>;                // (rows, columns)
@group(0) @binding(1) var<storage, read> gain: array<f32>;             // (columns)
@group(0) @binding(2) var<storage, read_write> result: array<out_t>;   // (rows, columns)
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
    var squares = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let value = x[base + column];
        squares += value * value;
    }
    let mean = reduce_sum(squares, lane) / f32(params.columns);
    let scale = inverseSqrt(mean + params.epsilon);
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        result[base + column] = out_t(x[base + column] * scale * gain[column]);
    }
}
