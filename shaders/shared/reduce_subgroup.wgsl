// Sums and maxima over a workgroup: within subgroups by subgroup operations, across them through workgroup memory.
// The subgroup's width is whatever the driver chose. Needs: override WORKGROUP. Every lane must call, and gets the result.
struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) within: u32,
}
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

fn reduce_sum(value: f32, lane: Lane) -> f32 {
    let part = subgroupAdd(value);
    workgroupBarrier();
    if lane.within == 0u {
        reduce_scratch[lane.subgroup] = part;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < lane.subgroups; i++) {
        total += reduce_scratch[i];
    }
    return total;
}

fn reduce_max(value: f32, lane: Lane) -> f32 {
    let part = subgroupMax(value);
    workgroupBarrier();
    if lane.within == 0u {
        reduce_scratch[lane.subgroup] = part;
    }
    workgroupBarrier();
    var total = reduce_scratch[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        total = max(total, reduce_scratch[i]);
    }
    return total;
}
