// Products of what few tokens' own experts made of them with those experts' weights, each times its share, added to the tokens' rows
// of the stream. One workgroup: ROWS weight rows of each of a token's experts.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;          // (tokens, used, columns, padded to fours)
@group(0) @binding(1) var<storage, read> codes: array<code_t>;         // (experts * width, code_words)
@group(0) @binding(2) var<storage, read> scales: array<u32>;           // (experts * width, scale_words)
@group(0) @binding(3) var<storage, read> chosen: array<u32>;           // (tokens, used)
@group(0) @binding(4) var<storage, read> shares: array<f32>;           // (tokens, experts)
@group(0) @binding(5) var<storage, read_write> result: array<out_t>;   // (tokens, width)
#import params
#import weight
#import prepare
const SUMS: u32 = ROWS;
#import reduce_each
#import input_row

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let row_blocks = (params.rows + ROWS - 1u) / ROWS;
    let token = index / row_blocks;
    let first_row = (index - token * row_blocks) * ROWS;
    if token >= params.tokens {
        return;
    }
    prepare_levels(lane.index, WORKGROUP);
    var sums: array<f32, SUMS>;
    for (var slot = 0u; slot < params.used; slot++) {
        let place = token * params.used + slot;
        let expert = chosen[place];
        if expert >= params.experts {
            break;
        }
        let share = shares[token * params.experts + expert];
        for (var column = lane.index * 8u; column < params.columns; column += WORKGROUP * 8u) {
            // Behind the end of a row stand another row's scales.
            let more = column + 4u < params.columns;
            var low: array<vec4<f32>, ROWS>;
            var high: array<vec4<f32>, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                let row = expert * params.width + params.row_start + min(first_row + r, params.rows - 1u);
#import eight_weights
            }
            let x_low = share * row4(place, column);
            var x_high = vec4(0.0);
            if more {
                x_high = share * row4(place, column + 4u);
            }
            for (var r = 0u; r < ROWS; r++) {
                sums[r] += dot(low[r], x_low) + dot(high[r], x_high);
            }
        }
    }
    let total = reduce_each(sums, lane);
    let row = first_row + lane.index;
    if lane.index < SUMS && row < params.rows {
        let at = token * params.width + params.row_start + row;
        result[at] = out_t(f32(result[at]) + total);
    }
}
