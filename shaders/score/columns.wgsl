// Importance of the columns of a weight: the sum down each of what its elements count. One workgroup: 32 columns.
@group(0) @binding(0) var<storage, read> weight: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read> gradient: array<f32>;         // (rows, columns)
@group(0) @binding(2) var<storage, read> fisher: array<f32>;           // (rows, columns)
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (columns)
#import params
#import column_shares
#import score_element

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let column = (group.y * groups.x + group.x) * COLUMNS + (lane & (COLUMNS - 1u));
    var sum = 0.0;
    if column < params.columns {
        let end = params.row_start + params.rows;
        for (var row = params.row_start + lane / COLUMNS; row < end; row += SHARES) {
            let at = row * params.columns + column;
            sum += score_element(weight[at], gradient[at], fisher[at]);
        }
    }
    sum = sum_of_shares(sum, lane);
    if lane < COLUMNS && column < params.columns {
        if params.accumulate == 1u {
            sum += result[column];
        }
        result[column] = sum;
    }
}
