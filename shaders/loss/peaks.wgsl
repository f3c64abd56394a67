// The largest of each part of a row of logits, the first column that has it, and the part's sum of exp(logit - largest). One
// workgroup: one part of a row.
@group(0) @binding(0) var<storage, read> logits: array<f32>;               // (rows, columns)
@group(0) @binding(1) var<storage, read_write> peaks: array<vec2<f32>>;    // (rows, parts): largest, sum
@group(0) @binding(2) var<storage, read_write> places: array<u32>;         // (rows, parts) columns
#import params
override WORKGROUP: u32;
#import reduce
#import is_nan

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let parts = (params.columns + EACH - 1u) / EACH;
    let row = index / parts;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    let first = (index - row * parts) * EACH;
    let end = min(first + EACH, params.columns);
    var largest = -3.4e38;
    var mine = 0u;
    for (var column = first + lane.index; column < end; column += WORKGROUP) {
        let logit = logits[base + column];
        if logit > largest {
            largest = logit;
            mine = column;
        }
    }
    let maximum = reduce_max(largest, lane);
    // The least column is the largest negative one; f32 holds it exactly below 2^24.
    let place = reduce_max(select(-3.0e38, -f32(mine), largest == maximum), lane);
    var sum = 0.0;
    for (var column = first + lane.index; column < end; column += WORKGROUP) {
        // A device may take exp of NaN for anything, and maximum may have passed it over.
        let logit = logits[base + column];
        sum += select(exp(logit - maximum), logit, is_nan(logit));
    }
    sum = reduce_sum(sum, lane);
    if lane.index == 0u {
        peaks[index] = vec2(maximum, sum);
        places[index] = u32(-place);
    }
}
