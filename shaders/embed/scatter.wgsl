// Gradient of an embedding table: each row is the sum of the gradients of the tokens that chose it, in the tokens' order.
// One invocation: one element of the table.
@group(0) @binding(0) var<storage, read> grad: array<f32>;             // (tokens, columns)
@group(0) @binding(1) var<storage, read> starts: array<u32>;           // (rows + 1) where a row's tokens begin in the order
@group(0) @binding(2) var<storage, read> order: array<u32>;            // (tokens) tokens by the row they chose
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (rows, columns)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let row = index / params.columns;
    if row >= params.rows {
        return;
    }
    let column = index - row * params.columns;
    var sum = 0.0;
    for (var place = starts[row]; place < starts[row + 1u]; place++) {
        sum += grad[order[place] * params.columns + column];
    }
    if params.accumulate == 1u {
        sum += result[index];
    }
    result[index] = sum;
}
