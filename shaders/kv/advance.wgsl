// The likeliest token becomes the next one: it is what the next pass reads, and the cache holds one token more. It is told with its
// logits' log-sum-exp. One workgroup: one sequence; a lane takes every so manieth part of its logits.
@group(0) @binding(0) var<storage, read> peaks: array<vec2<f32>>;      // (sequences, parts): largest logit, sum of exp(logit - largest)
@group(0) @binding(1) var<storage, read> places: array<u32>;           // (sequences, parts) columns of the largest
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;        // (sequences)
@group(0) @binding(3) var<storage, read_write> past: array<u32>;       // (sequences)
@group(0) @binding(4) var<storage, read_write> told: array<vec2<f32>>; // (sequences): token, log-sum-exp
#import params
override WORKGROUP: u32;
#import reduce
#import is_nan

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let sequence = group.y * groups.x + group.x;
    if sequence >= params.sequences {
        return;
    }
    let base = sequence * params.parts;
    var largest = -3.4e38;
    var mine = 0u;
    for (var part = lane.index; part < params.parts; part += WORKGROUP) {
        let peak = peaks[base + part].x;
        if peak > largest {
            largest = peak;
            mine = places[base + part];
        }
    }
    let maximum = reduce_max(largest, lane);
    // The least column is the largest negative one; f32 holds it exactly below 2^24.
    let place = reduce_max(select(-3.0e38, -f32(mine), largest == maximum), lane);
    var sum = 0.0;
    for (var part = lane.index; part < params.parts; part += WORKGROUP) {
        let peak = peaks[base + part];
        sum += select(peak.y * exp(peak.x - maximum), peak.y, is_nan(peak.y));
    }
    sum = reduce_sum(sum, lane);
    if lane.index == 0u {
        ids[sequence] = u32(-place);
        past[sequence] += 1u;
        told[sequence] = vec2(-place, select(maximum + log(sum), sum, is_nan(sum)));
    }
}
