// Sums and maxima over a workgroup through workgroup memory: runs everywhere. The order is fixed by the lane count.
// Needs: override WORKGROUP. Every lane of the workgroup must call, and gets the result.
struct Lane {
    @builtin(local_invocation_index) index: u32,
}
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

fn reduce_sum(value: f32, lane: Lane) -> f32 {
    workgroupBarrier();
    reduce_scratch[lane.index] = value;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step = step / 2u) {
        if lane.index < step {
            reduce_scratch[lane.index] += reduce_scratch[lane.index + step];
        }
        workgroupBarrier();
    }
    return reduce_scratch[0];
}

fn reduce_max(value: f32, lane: Lane) -> f32 {
    workgroupBarrier();
    reduce_scratch[lane.index] = value;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step = step / 2u) {
        if lane.index < step {
            reduce_scratch[lane.index] = max(reduce_scratch[lane.index], reduce_scratch[lane.index + step]);
        }
        workgroupBarrier();
    }
    return reduce_scratch[0];
}
