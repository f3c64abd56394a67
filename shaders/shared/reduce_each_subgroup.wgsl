// SUMS sums over a workgroup at once: lane i gets the total of value i. Every lane must call. Subgroups have at least four
// lanes. Needs: WORKGROUP, SUMS.
#import reduce
var<workgroup> reduce_parts: array<f32, SUMS * (WORKGROUP / 4u)>;

fn reduce_each(values: array<f32, SUMS>, lane: Lane) -> f32 {
    var parts = values;
    for (var i = 0u; i < SUMS; i++) {
        parts[i] = subgroupAdd(parts[i]);
    }
    workgroupBarrier();
    if lane.within == 0u {
        for (var i = 0u; i < SUMS; i++) {
            reduce_parts[lane.subgroup * SUMS + i] = parts[i];
        }
    }
    workgroupBarrier();
    var total = 0.0;
    if lane.index < SUMS {
        for (var part = 0u; part < lane.subgroups; part++) {
            total += reduce_parts[part * SUMS + lane.index];
        }
    }
    return total;
}
