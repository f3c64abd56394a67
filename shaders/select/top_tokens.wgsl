// The likeliest tokens of each row of logits and their log-probabilities. One workgroup: one row.
@group(0) @binding(0) var<storage, read> scores: array<f32>;           // (rows, columns) logits
@group(0) @binding(1) var<storage, read_write> tokens: array<u32>;     // (rows, keep) in rising order
@group(0) @binding(2) var<storage, read_write> logs: array<f32>;       // (rows, keep)
#import params
override WORKGROUP: u32;
#import reduce
#import radix_select

// Of each lane's stretch: keys above the one sought, and keys equal to it.
var<workgroup> tallies: array<vec2<u32>, LANES>;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    var highest = -3.4e38;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        highest = max(highest, scores[base + column]);
    }
    highest = reduce_max(highest, lane);
    var sum = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        // A device may take exp of NaN for anything, and the maximum may have passed it over.
        let below = scores[base + column] - highest;
        sum += select(exp(below), below, is_nan(below));
    }
    sum = reduce_sum(sum, lane);
    radix_select(base, params.columns, params.keep, lane.index);

    // Each lane has a stretch of its own, so that tokens are kept in the order of their numbers.
    let stretch = (params.columns + LANES - 1u) / LANES;
    let start = min(lane.index * stretch, params.columns);
    let end = min(start + stretch, params.columns);
    var mine = vec2(0u);
    for (var column = start; column < end; column++) {
        let key = order_key(scores[base + column]);
        mine += vec2(u32(key > sought), u32(key == sought));
    }
    tallies[lane.index] = mine;
    workgroupBarrier();
    var before = vec2(0u);
    for (var other = 0u; other < lane.index; other++) {
        before += tallies[other];
    }
    for (var column = start; column < end; column++) {
        let logit = scores[base + column];
        let key = order_key(logit);
        if key > sought || (key == sought && before.y < wanted) {
            let place = row * params.keep + before.x + min(before.y, wanted);
            tokens[place] = column;
            logs[place] = select((logit - highest) - log(sum), sum, is_nan(sum));
        }
        before += vec2(u32(key > sought), u32(key == sought));
    }
}
