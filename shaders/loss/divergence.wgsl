// How far a child's next-token distribution is from its parent's: KL(parent || child) in nats, and the likeliest token of
// each. One workgroup: one row. With x = child - parent + m and m the mean of parent - child under the parent,
//   KL = log(1 + sum(p (exp(x) - 1 - x))):
// every term is at least 0, so nothing cancels and equal rows give exactly 0. KL too large for exp is m + the difference
// of the log-sum-exps.
@group(0) @binding(0) var<storage, read> parent: array<f32>;           // (rows, columns) logits
@group(0) @binding(1) var<storage, read> child: array<f32>;            // (rows, columns) logits
@group(0) @binding(2) var<storage, read_write> kl: array<f32>;         // (rows) nats
@group(0) @binding(3) var<storage, read_write> tops: array<u32>;       // (rows, 2) parent's, child's; NONE beside a NaN
#import params
override WORKGROUP: u32;
#import reduce
#import is_nan

const NONE: u32 = 0xffffffffu;
const LOWEST: f32 = -3.4e38;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    var highest = vec2(LOWEST);
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        highest = max(highest, vec2(parent[base + column], child[base + column]));
    }
    highest.x = reduce_max(highest.x, lane);
    highest.y = reduce_max(highest.y, lane);

    // Columns below 2^24 are exact as f32; the first of equals is the largest of their negatives.
    var first = vec2(LOWEST);
    var sums = vec2(0.0);
    var weighted = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let logits = vec2(parent[base + column], child[base + column]);
        first = max(first, select(vec2(LOWEST), vec2(-f32(column)), logits == highest));
        let powers = exp(logits - highest);
        sums += powers;
        // What the parent rules out counts for nothing, however far apart: 0 times infinity would be NaN.
        let step = select(powers.x * (logits.x - logits.y), 0.0, powers.x == 0.0);
        // A device may take NaN for anything, and the maximum may have passed it over.
        weighted += select(step, logits.x + logits.y, is_nan(logits.x + logits.y));
    }
    first.x = reduce_max(first.x, lane);
    first.y = reduce_max(first.y, lane);
    sums.x = reduce_sum(sums.x, lane);
    sums.y = reduce_sum(sums.y, lane);
    weighted = reduce_sum(weighted, lane);

    let mean = weighted / sums.x;
    let far = mean + highest.y - (highest.x + log(sums.x)) > 20.0;
    var excess = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let logits = vec2(parent[base + column], child[base + column]);
        let weight = exp(logits.x - highest.x);
        let x = logits.y - logits.x + mean;
        // exp(x) alone may be infinite where the weight is 0.
        let whole = exp(logits.y - highest.x + mean) - select(weight * (1.0 + x), 0.0, weight == 0.0);
        let near = weight > 0.0 && abs(x) < 0.5;
        excess += select(select(whole, weight * exp_beyond_line(x), near), 0.0, far);
    }
    excess = reduce_sum(excess, lane) / sums.x;
    if lane.index == 0u {
        let lse = highest + log(sums);
        let value = select(log_of_one_and(excess), mean + (lse.y - lse.x), far);
        kl[row] = select(value, weighted, is_nan(weighted));
        let found = select(vec2<u32>(-first), vec2(NONE), vec2(is_nan(weighted)) | (first == vec2(LOWEST)));
        tops[2u * row] = found.x;
        tops[2u * row + 1u] = found.y;
    }
}

// exp(x) - 1 - x for |x| < 0.5, by its series: the parts cancel.
fn exp_beyond_line(x: f32) -> f32 {
    let inner = 1.0 / 120.0 + x * (1.0 / 720.0 + x * (1.0 / 5040.0 + x * (1.0 / 40320.0 + x / 362880.0)));
    return x * x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * inner)));
}

// log(1 + s) for s >= 0. Below 1 by the series of 2 atanh(s / (2 + s)): WGSL's log is off by 2^-21 around 1.
fn log_of_one_and(s: f32) -> f32 {
    let z = s / (2.0 + s);
    let q = z * z;
    let inner = 1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q * (1.0 / 13.0 + q / 15.0)));
    return select(log(1.0 + s), 2.0 * z * (1.0 + q * (1.0 / 3.0 + q * (0.2 + q * inner))), s < 1.0);
}
