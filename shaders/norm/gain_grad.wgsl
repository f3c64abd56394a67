// Gradient of a normalization's gain: result[c] = sum_r grad[r, c] * x[r, c] * scales[r]. One workgroup: 8 columns, whose
// rows are shared among 32 lanes each; their sums are added in a fixed order.
@group(0) @binding(0) var<storage, read> x: array<f32>;                // (rows, columns)
@group(0) @binding(1) var<storage, read> scales: array<f32>;           // (rows)
@group(0) @binding(2) var<storage, read> grad: array<f32>;             // (rows, columns)
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (columns)
#import params

const COLUMNS: u32 = 8u;
const SHARES: u32 = 32u;
var<workgroup> parts: array<f32, COLUMNS * SHARES>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let across = lane & (COLUMNS - 1u);
    let column = (group.y * groups.x + group.x) * COLUMNS + across;
    var sum = 0.0;
    if column < params.columns {
        for (var row = lane / COLUMNS; row < params.rows; row += SHARES) {
            let at = row * params.columns + column;
            sum += grad[at] * (x[at] * scales[row]);
        }
    }
    parts[lane] = sum;
    workgroupBarrier();
    if lane < COLUMNS && column < params.columns {
        var total = 0.0;
        for (var share = 0u; share < SHARES; share++) {
            total += parts[share * COLUMNS + across];
        }
        if params.accumulate == 1u {
            total += result[column];
        }
        result[column] = total;
    }
}
