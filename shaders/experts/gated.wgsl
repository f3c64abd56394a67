// Gated products of few tokens with the weights of each one's own experts: activation(gate) * up. Of each expert the gate's rows stand
// before the up projection's, experts one behind the other. One workgroup: ROWS rows of both, one token and one of its experts.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;          // (tokens, columns, padded to fours)
@group(0) @binding(1) var<storage, read> codes: array<code_t>;         // (experts * 2 * width, code_words)
@group(0) @binding(2) var<storage, read> scales: array<u32>;           // (experts * 2 * width, scale_words)
@group(0) @binding(3) var<storage, read> chosen: array<u32>;           // (tokens, used)
@group(0) @binding(4) var<storage, read_write> result: array<out_t>;   // (tokens, used, width)
#import params
#import weight
#import prepare
#import activation
const BOTH: u32 = 2u * ROWS;
const SUMS: u32 = BOTH;
#import reduce_each
#import input_row
var<workgroup> totals: array<f32, BOTH>;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let row_blocks = (params.rows + ROWS - 1u) / ROWS;
    let place = index / row_blocks;
    let first_row = (index - place * row_blocks) * ROWS;
    if place >= params.tokens * params.used {
        return;
    }
    let token = place / params.used;
    let expert = chosen[place];
    let row_here = first_row + lane.index;
    let at = place * params.width + params.row_start + row_here;
    if expert >= params.experts {
        if lane.index < ROWS && row_here < params.rows {
            result[at] = out_t(0.0);
        }
        return;
    }
    prepare_levels(lane.index, WORKGROUP);
    var sums: array<f32, SUMS>;
    for (var column = lane.index * 8u; column < params.columns; column += WORKGROUP * 8u) {
        // Behind the end of a row stand another row's scales.
        let more = column + 4u < params.columns;
        var low: array<vec4<f32>, BOTH>;
        var high: array<vec4<f32>, BOTH>;
        for (var r = 0u; r < BOTH; r++) {
            let half = r / ROWS;
            let within = params.row_start + min(first_row + r - half * ROWS, params.rows - 1u);
            let row = (2u * expert + half) * params.width + within;
#import eight_weights
        }
        let x_low = row4(token, column);
        var x_high = vec4(0.0);
        if more {
            x_high = row4(token, column + 4u);
        }
        for (var r = 0u; r < BOTH; r++) {
            sums[r] += dot(low[r], x_low) + dot(high[r], x_high);
        }
    }
    let total = reduce_each(sums, lane);
    if lane.index < BOTH {
        totals[lane.index] = total;
    }
    workgroupBarrier();
    if lane.index < ROWS && row_here < params.rows {
        let gate = totals[lane.index];
        result[at] = out_t(totals[ROWS + lane.index] * activated_by_logistic(gate, params.activation));
    }
}
