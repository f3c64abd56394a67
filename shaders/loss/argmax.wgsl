// The column of each row's largest value, the first of equals. One workgroup: one row.
@group(0) @binding(0) var<storage, read> logits: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read_write> best: array<u32>;       // (rows)
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
    var largest = -3.4e38;
    var mine = 0u;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let logit = logits[base + column];
        if logit > largest {
            largest = logit;
            mine = column;
        }
    }
    let maximum = reduce_max(largest, lane);
    // The least column is the largest negative one; f32 holds it exactly below 2^24.
    let first = reduce_max(select(-3.0e38, -f32(mine), largest == maximum), lane);
    if lane.index == 0u {
        best[row] = u32(-first);
    }
}
