// log(sum(exp(logits))) of each row and the logit of its target. One workgroup: one row.
@group(0) @binding(0) var<storage, read> logits: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read> targets: array<u32>;          // (rows)
@group(0) @binding(2) var<storage, read_write> lse: array<f32>;        // (rows)
@group(0) @binding(3) var<storage, read_write> picked: array<f32>;     // (rows)
#import params
override WORKGROUP: u32;
#import reduce
#import is_nan

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    var maximum = -3.4e38;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        maximum = max(maximum, logits[base + column]);
    }
    maximum = reduce_max(maximum, lane);
    var sum = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        // A device may take exp of NaN for anything, and maximum may have passed it over.
        let logit = logits[base + column];
        sum += select(exp(logit - maximum), logit, is_nan(logit));
    }
    sum = reduce_sum(sum, lane);
    if lane.index == 0u {
        lse[row] = select(maximum + log(sum), sum, is_nan(sum));
        picked[row] = logits[base + targets[row]];
    }
}
