// SUMS sums over a workgroup at once: lane i gets the total of value i. Every lane must call, once. SUMS is a power of two up
// to 32, subgroups have at least four lanes and are full. Needs: WORKGROUP, SUMS.
//
// A subgroup of SUMS lanes or more halves what each lane holds with every exchange: SUMS - 1 exchanges where a sum of its
// own for each value takes as many times the logarithm of the width (2-bit products on an H100: 9.06 us, 9.58 that way).
#import reduce
var<workgroup> reduce_parts: array<f32, SUMS * (WORKGROUP / 4u)>;

fn reduce_each(values: array<f32, SUMS>, lane: Lane) -> f32 {
    var parts = values;
    let width = WORKGROUP / lane.subgroups;
    if width >= SUMS {
#for STEP in 5
        if (SUMS >> {STEP}u) > 1u {
            let half = SUMS >> ({STEP}u + 1u);
            let upper = (lane.within & half) != 0u;
            for (var i = 0u; i < half; i++) {
                let given = select(parts[i + half], parts[i], upper);
                parts[i] = select(parts[i], parts[i + half], upper) + subgroupShuffleXor(given, half);
            }
        }
#end
        for (var distance = SUMS; distance < width; distance *= 2u) {
            parts[0] += subgroupShuffleXor(parts[0], distance);
        }
        if lane.subgroups == 1u {
            return parts[0];
        }
        if lane.within < SUMS {
            reduce_parts[lane.subgroup * SUMS + lane.within] = parts[0];
        }
    } else {
        for (var i = 0u; i < SUMS; i++) {
            let sum = subgroupAdd(parts[i]);
            if lane.within == 0u {
                reduce_parts[lane.subgroup * SUMS + i] = sum;
            }
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
