// A weighted sum of two models' logits over the tokens that both have. One invocation: one logit.
@group(0) @binding(0) var<storage, read> left: array<f32>;             // (rows, left_columns)
@group(0) @binding(1) var<storage, read> right: array<f32>;            // (rows, right_columns)
@group(0) @binding(2) var<storage, read_write> result: array<f32>;     // (rows, columns)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index >= params.rows * params.columns {
        return;
    }
    let row = index / params.columns;
    let column = index % params.columns;
    let a = left[row * params.left_columns + column];
    let b = right[row * params.right_columns + column];
    result[index] = params.left_factor * a + params.right_factor * b;
}
