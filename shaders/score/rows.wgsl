// Importance of the rows of a weight: the sum over each of what its elements count. One workgroup: one row.
@group(0) @binding(0) var<storage, read> weight: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read> gradient: array<f32>;         // (rows, columns)
@group(0) @binding(2) var<storage, read> fisher: array<f32>;           // (rows, columns)
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (rows)
#import params
override WORKGROUP: u32;
#import reduce
#import score_element

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    if index >= params.rows {
        return;
    }
    let row = params.row_start + index;
    let base = row * params.columns;
    var sum = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let at = base + column;
        sum += score_element(weight[at], gradient[at], fisher[at]);
    }
    sum = reduce_sum(sum, lane);
    if lane.index == 0u {
        if params.accumulate == 1u {
            sum += result[row];
        }
        result[row] = sum;
    }
}
