// Gradient of a child's divergence from its parent, both at a temperature, at the child's logits:
// (softmax(child / T) - softmax(parent / T)) * factor. One workgroup: one row.
@group(0) @binding(0) var<storage, read> parent: array<f32>;           // (rows, columns) logits
@group(0) @binding(1) var<storage, read> child: array<f32>;            // (rows, columns) logits
@group(0) @binding(2) var<storage, read_write> result: array<out_t>;   // (rows, columns)
#import params
override WORKGROUP: u32;
#import reduce
#import is_nan

const LOWEST: f32 = -3.4e38;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    var highest = vec2(LOWEST);
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        highest = max(highest, vec2(parent[base + column], child[base + column]));
    }
    highest.x = reduce_max(highest.x, lane);
    highest.y = reduce_max(highest.y, lane);

    var sums = vec2(0.0);
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let below = (vec2(parent[base + column], child[base + column]) - highest) * params.inverse;
        // A device may take exp of NaN for anything.
        sums += select(exp(below), below, vec2(is_nan(below.x), is_nan(below.y)));
    }
    sums.x = reduce_sum(sums.x, lane);
    sums.y = reduce_sum(sums.y, lane);

    let both = sums.x + sums.y;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let below = (vec2(parent[base + column], child[base + column]) - highest) * params.inverse;
        let shares = exp(below) / sums;
        let value = (shares.y - shares.x) * params.factor;
        result[base + column] = out_t(select(value, both, is_nan(both)));
    }
}
