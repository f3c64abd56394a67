// Product of few tokens with an expert's weight, for the tokens that go to it: for others no weight is read and no result
// written. One workgroup: ROWS weight rows, one token; one invocation: eight columns at a time.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;          // (tokens, columns, padded to fours)
@group(0) @binding(1) var<storage, read> codes: array<code_t>;         // (rows, code_words)
@group(0) @binding(2) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(3) var<storage, read> shares: array<f32>;           // (tokens, experts)
@group(0) @binding(4) var<storage, read_write> result: array<out_t>;   // (tokens, out_stride)
#import params
#import weight
#import prepare
#import activation
#import is_nan
const SUMS: u32 = ROWS;
#import reduce_each
#import input_row

// What becomes of the sums: they are stored; times the share, added to what stands there; or times the activation of what
// stands there, whose number stands in the bits above.
const EPILOGUE_ADD: u32 = 1u;
const EPILOGUE_GATE: u32 = 2u;
const EPILOGUE_ACTIVATION: u32 = 2u;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let row_blocks = (params.rows + ROWS - 1u) / ROWS;
    let token = index / row_blocks;
    let first_row = (index - token * row_blocks) * ROWS;
    if token >= params.tokens {
        return;
    }
    let share = shares[token * params.experts + params.expert];
    if share == 0.0 && !is_nan(share) {
        return;
    }
    prepare_levels(lane.index, WORKGROUP);
    var sums: array<f32, SUMS>;
    for (var column = lane.index * 8u; column < params.columns; column += WORKGROUP * 8u) {
        // Behind the end of a row stand another row's scales.
        let more = column + 4u < params.columns;
        var low: array<vec4<f32>, ROWS>;
        var high: array<vec4<f32>, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            let row = params.row_start + min(first_row + r, params.rows - 1u);
#import eight_weights
        }
        let x_low = row4(token, column);
        var x_high = vec4(0.0);
        if more {
            x_high = row4(token, column + 4u);
        }
        for (var r = 0u; r < ROWS; r++) {
            sums[r] += dot(low[r], x_low) + dot(high[r], x_high);
        }
    }
    let total = reduce_each(sums, lane);
    let row = first_row + lane.index;
    if lane.index < SUMS && row < params.rows {
        let at = token * params.out_stride + params.out_offset + row;
        var value = total;
        if params.epilogue == EPILOGUE_ADD {
            value = f32(result[at]) + share * total;
        } else if (params.epilogue & EPILOGUE_GATE) != 0u {
            value = total * activated_by_logistic(f32(result[at]), params.epilogue >> EPILOGUE_ACTIVATION);
        }
        result[at] = out_t(value);
    }
}
