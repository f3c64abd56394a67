// Gradient of a weighted sum of cross-entropies at the logits: (softmax - one at the target) * weight; 0 in rows that have no
// target. One invocation: one element.
@group(0) @binding(0) var<storage, read> logits: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read> lse: array<f32>;              // (rows) log(sum(exp(logits)))
@group(0) @binding(2) var<storage, read> targets: array<u32>;          // (rows) a column, or more than there are
@group(0) @binding(3) var<storage, read_write> result: array<out_t>;   // (rows, columns)
#import params
override WORKGROUP: u32;
#import is_nan

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let row = index / params.columns;
    if row >= params.rows {
        return;
    }
    let target_column = targets[row];
    var value = 0.0;
    if target_column < params.columns {
        // A device may take exp of NaN for anything.
        let logit = logits[index] - lse[row];
        let one = select(0.0, 1.0, index - row * params.columns == target_column);
        value = select((exp(logit) - one) * params.weight, logit, is_nan(logit));
    }
    result[index] = out_t(value);
}
