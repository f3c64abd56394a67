// SUMS sums over a workgroup: lane i gets the total of value i. Every lane must call. Needs: WORKGROUP, SUMS.
#import reduce

fn reduce_each(values: array<f32, SUMS>, lane: Lane) -> f32 {
    var parts = values;
    var total = 0.0;
    for (var i = 0u; i < SUMS; i++) {
        let sum = reduce_sum(parts[i], lane);
        if lane.index == i {
            total = sum;
        }
    }
    return total;
}
