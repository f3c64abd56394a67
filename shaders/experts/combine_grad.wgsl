// Gradients of an expert's part in the sum of experts: at its result, share * grad, and at the share, the product of the two
// rows; 0 where the share is 0. One workgroup: one row.
@group(0) @binding(0) var<storage, read> grad: array<f32>;                 // (tokens, width)
@group(0) @binding(1) var<storage, read> branch: array<f32>;               // (rows, width)
@group(0) @binding(2) var<storage, read> shares: array<f32>;               // (tokens, experts)
@group(0) @binding(3) var<storage, read> token_of: array<u32>;             // (rows)
@group(0) @binding(4) var<storage, read_write> result: array<f32>;         // (rows, width)
@group(0) @binding(5) var<storage, read_write> share_grad: array<f32>;     // (tokens, experts)
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
    var token = row;
    if params.listed == 1u {
        token = token_of[row];
    }
    let place = token * params.experts + params.expert;
    let share = shares[place];
    let counts = share != 0.0 || is_nan(share);
    var products = 0.0;
    for (var column = lane.index; column < params.width; column += WORKGROUP) {
        let at = row * params.width + column;
        var value = 0.0;
        if counts {
            let slope = grad[token * params.width + column];
            products += slope * branch[at];
            value = share * slope;
        }
        result[at] = value;
    }
    let total = reduce_sum(products, lane);
    if lane.index == 0u {
        share_grad[place] = total;
    }
}
