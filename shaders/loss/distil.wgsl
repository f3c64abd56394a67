// Distillation: how far a child's next-token distribution is from its parent's, both at a temperature, and the gradient of
// that at the child's logits. One workgroup: one row. With p the parent's shares and q the child's:
//   forward         sum(p log(p / q))                                gradient q - p
//   reverse         sum(q log(q / p))                                gradient q (log(q / p) - loss)
//   Jensen-Shannon  b sum(p log(p / m)) + (1 - b) sum(q log(q / m))  gradient (1 - b) q (log(q / m) - sum(q log(q / m)))
// with m = b p + (1 - b) q.
@group(0) @binding(0) var<storage, read> parent: array<f32>;           // (rows, columns) logits
@group(0) @binding(1) var<storage, read> child: array<f32>;            // (rows, columns) logits
@group(0) @binding(2) var<storage, read> scored: array<u32>;           // (rows) 0: neither loss nor gradient
@group(0) @binding(3) var<storage, read_write> result: array<out_t>;   // (rows, columns)
@group(0) @binding(4) var<storage, read_write> loss: array<f32>;       // (rows) nats
#import params
override WORKGROUP: u32;
#import reduce
#import is_nan

const LOWEST: f32 = -3.4e38;
// Shares below count for nothing, however far apart the logits are: their products with logarithms are as small, and 0 times
// infinity would be NaN.
const LEAST: f32 = 1e-30;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
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
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        highest = max(highest, vec2(parent[base + column], child[base + column]));
    }
    highest.x = reduce_max(highest.x, lane);
    highest.y = reduce_max(highest.y, lane);

    var sums = vec2(0.0);
    var apart = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let below = (vec2(parent[base + column], child[base + column]) - highest) * params.inverse;
        let powers = exp(below);
        sums += powers;
        // The distance of the logits under the distribution that the divergence is from.
        let power = select(powers.x, powers.y, params.kind == REVERSE);
        let distance = select(below.x - below.y, below.y - below.x, params.kind == REVERSE);
        let term = select(power * distance, 0.0, power < LEAST);
        // A device may take NaN for anything, and the maximum may have passed it over.
        apart += select(term, below.x + below.y, is_nan(below.x + below.y));
    }
    sums.x = reduce_sum(sums.x, lane);
    sums.y = reduce_sum(sums.y, lane);
    apart = reduce_sum(apart, lane);

    let broken = is_nan(apart);
    let own = select(sums.x, sums.y, params.kind == REVERSE);
    // log of the child's sum less log of the parent's.
    let logs = log(sums.y) - log(sums.x);
    var value = apart / own + select(logs, -logs, params.kind == REVERSE);
    var pull = value;
    if params.kind == JENSEN_SHANNON {
        var parts = vec2(0.0);
        for (var column = lane.index; column < params.columns; column += WORKGROUP) {
            let below = (vec2(parent[base + column], child[base + column]) - highest) * params.inverse;
            let shares = exp(below) / sums;
            parts += select(shares * log(shares / mixed(shares)), vec2(0.0), shares < vec2(LEAST));
        }
        parts.x = reduce_sum(parts.x, lane);
        parts.y = reduce_sum(parts.y, lane);
        value = params.beta * parts.x + (1.0 - params.beta) * parts.y;
        pull = parts.y;
    }
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let below = (vec2(parent[base + column], child[base + column]) - highest) * params.inverse;
        let shares = exp(below) / sums;
        var slope = shares.y - shares.x;
        if params.kind == REVERSE {
            slope = shares.y * (below.y - below.x - logs - pull);
        } else if params.kind == JENSEN_SHANNON {
            slope = (1.0 - params.beta) * shares.y * (log(shares.y / mixed(shares)) - pull);
        }
        if params.kind != FORWARD && shares.y < LEAST {
            slope = 0.0;
        }
        result[base + column] = out_t(select(slope * params.factor, apart, broken));
    }
    if lane.index == 0u {
        loss[row] = select(value, apart, broken);
    }
}

const FORWARD: u32 = 0u;
const REVERSE: u32 = 1u;
const JENSEN_SHANNON: u32 = 2u;

// The shares of the mixture.
fn mixed(shares: vec2<f32>) -> f32 {
    return params.beta * shares.x + (1.0 - params.beta) * shares.y;
}
