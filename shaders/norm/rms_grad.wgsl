// Gradient of root-mean-square normalization at its input: with s = 1 / sqrt(mean(x^2) + epsilon) and h = grad * gain,
// s * h - x * s^3 * mean(h * x). Also s of each row, for the gradient of the gain. One workgroup: one row.
@group(0) @binding(0) var<storage, read> x: array<f32>;                // (rows, columns)
@group(0) @binding(1) var<storage, read> gain: array<f32>;             // (columns)
@group(0) @binding(2) var<storage, read> grad: array<f32>;             // (rows, columns)
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (rows, columns)
@group(0) @binding(4) var<storage, read_write> scales: array<f32>;     // (rows)
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
    var products = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let value = x[base + column];
        squares += value * value;
        products += grad[base + column] * gain[column] * value;
    }
    let columns = f32(params.columns);
    let scale = inverseSqrt(reduce_sum(squares, lane) / columns + params.epsilon);
    let pull = reduce_sum(products, lane) / columns * scale * scale;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let at = base + column;
        var value = scale * (grad[at] * gain[column] - x[at] * pull);
        if params.accumulate == 1u {
            value += result[at];
        }
        result[at] = value;
    }
    if lane.index == 0u {
        scales[row] = scale;
    }
}
