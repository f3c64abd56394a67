// Sums of squares of parts of a tensor. One workgroup: one part, whose vectors of four lie a stride apart; the order of
// the sum depends on the sizes alone.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;                // (count)
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;         // (all parts of all tensors)
#import params
override WORKGROUP: u32;
#import reduce

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let part = group.y * groups.x + group.x;
    if part >= params.parts {
        return;
    }
    let whole = params.count / 4u;
    let stride = params.parts * WORKGROUP;
    let start = part * WORKGROUP + lane.index;
    var sums = vec4(0.0);
    for (var index = start; index < whole; index += stride) {
        sums += x[index] * x[index];
    }
    // The last vector may be no whole one. It belongs to whoever comes to it in turn.
    if whole % stride == start && whole * 4u < params.count {
        let inside = vec4(0u, 1u, 2u, 3u) < vec4(params.count - whole * 4u);
        let value = select(vec4(0.0), x[whole], inside);
        sums += value * value;
    }
    let sum = reduce_sum((sums.x + sums.y) + (sums.z + sums.w), lane);
    if lane.index == 0u {
        partials[params.first + part] = sum;
    }
}
