// Distillation from a parent's likeliest tokens: the gradient of KL(p || q) at a child's logits, q - p, where p is renormalized
// over those tokens and 0 elsewhere, and the divergence. One workgroup: one row.
@group(0) @binding(0) var<storage, read> tokens: array<u32>;           // (rows, top) distinct; from `columns` on: none
@group(0) @binding(1) var<storage, read> logs: array<f32>;             // (rows, top) log-probabilities
@group(0) @binding(2) var<storage, read> child: array<f32>;            // (rows, columns) logits
@group(0) @binding(3) var<storage, read> scored: array<u32>;           // (rows) 0: neither loss nor gradient
@group(0) @binding(4) var<storage, read_write> result: array<out_t>;   // (rows, columns)
@group(0) @binding(5) var<storage, read_write> loss: array<f32>;       // (rows) nats
#import params
override WORKGROUP: u32;
#import reduce
#import is_nan

const LOWEST: f32 = -3.4e38;
// Shares below count for nothing in the divergence, as in loss/distil.
const LEAST: f32 = 1e-30;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    let first = row * params.top;
    if scored[row] == 0u {
        for (var column = lane.index; column < params.columns; column += WORKGROUP) {
            result[base + column] = out_t(0.0);
        }
        if lane.index == 0u {
            loss[row] = 0.0;
        }
        return;
    }
    var highest = vec2(LOWEST);
    for (var place = lane.index; place < params.top; place += WORKGROUP) {
        if tokens[first + place] < params.columns {
            highest.x = max(highest.x, logs[first + place]);
        }
    }
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        highest.y = max(highest.y, child[base + column]);
    }
    highest.x = reduce_max(highest.x, lane);
    highest.y = reduce_max(highest.y, lane);

    // A device may take exp of NaN for anything.
    var sums = vec2(0.0);
    for (var place = lane.index; place < params.top; place += WORKGROUP) {
        if tokens[first + place] < params.columns {
            let below = (logs[first + place] - highest.x) * params.inverse;
            sums.x += select(exp(below), below, is_nan(below));
        }
    }
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let below = (child[base + column] - highest.y) * params.inverse;
        sums.y += select(exp(below), below, is_nan(below));
    }
    sums.x = reduce_sum(sums.x, lane);
    sums.y = reduce_sum(sums.y, lane);
    let both = sums.x + sums.y;
    let broken = is_nan(both);

    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let share = exp((child[base + column] - highest.y) * params.inverse) / sums.y;
        result[base + column] = out_t(select(share * params.factor, both, broken));
    }
    // The tokens' places are written again, by other lanes.
    storageBarrier();
    var apart = 0.0;
    for (var place = lane.index; place < params.top; place += WORKGROUP) {
        let column = tokens[first + place];
        if column < params.columns {
            let logits = vec2(logs[first + place], child[base + column]);
            let below = (logits - highest) * params.inverse;
            let shares = exp(below) / sums;
            apart += select(shares.x * (below.x - below.y), 0.0, shares.x < LEAST);
            let slope = (shares.y - shares.x) * params.factor;
            result[base + column] = out_t(select(slope, both, broken));
        }
    }
    apart = reduce_sum(apart, lane);
    if lane.index == 0u {
        loss[row] = select(apart + (log(sums.y) - log(sums.x)), both, broken);
    }
}
