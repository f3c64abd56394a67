// Zeroes the rows and the columns of a weight that masks rule out, in place. One invocation: one element.
@group(0) @binding(0) var<storage, read> row_mask: array<u32>;         // (rows) 0: zeroed
@group(0) @binding(1) var<storage, read> column_mask: array<u32>;      // (columns) 0: zeroed
@group(0) @binding(2) var<storage, read_write> weight: array<f32>;     // (rows, columns)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let down = index / params.columns;
    if down >= params.rows {
        return;
    }
    let row = params.row_start + down;
    let column = index - down * params.columns;
    var kept = true;
    if params.by_row == 1u {
        kept = row_mask[row] != 0u;
    }
    if params.by_column == 1u {
        kept = kept && column_mask[column] != 0u;
    }
    // Not a product with the mask: what is ruled out may be infinite.
    if !kept {
        weight[row * params.columns + column] = 0.0;
    }
}
