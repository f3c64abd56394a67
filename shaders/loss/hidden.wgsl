// How far hidden states are from a teacher's, each relative to the teacher's own size, and the gradient. One workgroup: one row.
@group(0) @binding(0) var<storage, read> parent: array<f32>;               // (rows, columns)
@group(0) @binding(1) var<storage, read> child: array<f32>;                // (rows, columns)
@group(0) @binding(2) var<storage, read> scored: array<u32>;               // (rows) 0: counts for nothing
@group(0) @binding(3) var<storage, read_write> result: array<f32>;         // (rows, columns) the gradient
@group(0) @binding(4) var<storage, read_write> loss: array<f32>;           // (rows)
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
    var far = 0.0;
    var size = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let own = parent[base + column];
        let away = child[base + column] - own;
        far += away * away;
        size += own * own;
    }
    far = reduce_sum(far, lane);
    size = reduce_sum(size, lane);
    let counts = scored[row] != 0u && size != 0.0;
    let factor = 2.0 * params.weight / size;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let away = child[base + column] - parent[base + column];
        result[base + column] = select(0.0, factor * away, counts);
    }
    if lane.index == 0u {
        loss[row] = select(0.0, far / size, counts);
    }
}
