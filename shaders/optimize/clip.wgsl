// The norm of a gradient from the sums of squares of its parts, and what the gradient is multiplied by: less where the
// norm is too large, 0 where it is not finite. One workgroup.
@group(0) @binding(0) var<storage, read> partials: array<f32>;               // (count)
@group(0) @binding(1) var<storage, read_write> state: array<f32>;            // (4) norm, factor, finite, 0
#import params
override WORKGROUP: u32;
#import reduce

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    var sum = 0.0;
    for (var index = lane.index; index < params.count; index += WORKGROUP) {
        sum += partials[index];
    }
    sum = reduce_sum(sum, lane);
    if lane.index == 0u {
        // By its bits: WGSL lets a device assume that every number is finite.
        let finite = (bitcast<u32>(sum) & 0x7fffffffu) < 0x7f800000u;
        let norm = params.scale * sqrt(sum);
        let above = norm + EPSILON;
        let clipped = select(1.0, params.max_norm / above, above > params.max_norm);
        state[0] = select(sum, norm, finite);
        state[1] = select(0.0, params.scale * clipped, finite);
        state[2] = select(0.0, 1.0, finite);
        state[3] = 0.0;
    }
}

const EPSILON: f32 = 1e-6;
