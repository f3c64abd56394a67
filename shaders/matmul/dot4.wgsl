// Product of integer activations with integer codes, four products at a time. One workgroup: ROWS weight rows, TOKENS
// tokens; one invocation: a span of SPAN blocks of 32 columns of each row at a time, whose activations share a scale.
// Activations come as planes of signed bytes, laid out so that neighbouring invocations load neighbouring vectors
// (quantize/activations). The codes of a span are summed as they stand; their zero point or offset meets the span's sum of
// activations afterwards. Groups are whole spans, or halves of them.
#import matmul_params
@group(0) @binding(0) var<storage, read> x_codes: array<vec4<u32>>;    // (tokens, 2 SPAN PLANES, spans)
@group(0) @binding(1) var<storage, read> x_scales: array<vec2<f32>>;   // (tokens, spans): scale, scale * sum
@group(0) @binding(2) var<storage, read> codes: array<code_t>;         // (rows, code_words)
@group(0) @binding(3) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(4) var<storage, read> bias: array<f32>;             // (out_stride), or one unused value
@group(0) @binding(5) var<storage, read_write> result: array<out_t>;   // (all tokens, out_stride)
#import block_bytes
#import block_parts
const SUMS: u32 = ROWS * TOKENS;
#import reduce_each

// A span of a row, and of a plane of the activations.
alias parts_t = array<u32, 8u * SPAN>;
alias four_t = array<vec4<u32>, 2u * SPAN>;

// What `span_dot` gives is so many times the sum of products: parts of a higher class count more.
const PART_SCALE: f32 = select(select(1.0, 4.0, PART_CLASSES == 2u), 8.0, PART_CLASSES == 4u);

// The products of four quads, half a block, each for itself.
fn quad_dots(parts: parts_t, x: four_t, h: u32) -> vec4<i32> {
    return vec4(
        dot4I8Packed(parts[4u * h], x[h].x),
        dot4I8Packed(parts[4u * h + 1u], x[h].y),
        dot4I8Packed(parts[4u * h + 2u], x[h].z),
        dot4I8Packed(parts[4u * h + 3u], x[h].w),
    );
}

fn added_parts(dots: vec4<i32>) -> i32 {
    if PART_CLASSES == 4u {
        return 8 * dots.x + 4 * dots.y + 2 * dots.z + dots.w;
    }
    if PART_CLASSES == 2u {
        return 4 * (dots.x + dots.z) + (dots.y + dots.w);
    }
    return dots.x + dots.y + dots.z + dots.w;
}
#import span

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let row_blocks = (params.rows + ROWS - 1u) / ROWS;
    let token_block = index / row_blocks;
    let first_row = (index - token_block * row_blocks) * ROWS;
    let first_token = token_block * TOKENS;
    if first_token >= params.tokens {
        return;
    }
    let spans = (params.columns + 32u * SPAN - 1u) / (32u * SPAN);
    var sums: array<f32, SUMS>;
    for (var span = lane.index; span < spans; span += WORKGROUP) {
        var parts: array<parts_t, ROWS>;
        var grids: array<grid_t, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            let row = params.row_start + min(first_row + r, params.rows - 1u);
            for (var s = 0u; s < SPAN; s++) {
                let block = block_parts(block_load(row, SPAN * span + s));
                for (var quad = 0u; quad < 8u; quad++) {
                    parts[r][8u * s + quad] = block[quad];
                }
            }
            grids[r] = span_grid(row, SPAN * span);
        }
        for (var t = 0u; t < TOKENS; t++) {
            let token = params.token_start + min(first_token + t, params.tokens - 1u);
            var dots: array<dots_t, ROWS>;
            var highest: array<wide_t, ROWS>;
            var total = dots_t();
            // The highest plane first: what is summed so far counts 256 times as much as the next. Of three planes the
            // highest is kept apart, for an integer of 32 bits does not hold them all.
            for (var plane = 0u; plane < PLANES; plane++) {
                var x: four_t;
                for (var h = 0u; h < 2u * SPAN; h++) {
                    let piece = 2u * SPAN * (PLANES - 1u - plane) + h;
                    x[h] = x_codes[(token * 2u * SPAN * PLANES + piece) * spans + span];
                }
                total = 256 * total + span_total(x);
                for (var r = 0u; r < ROWS; r++) {
                    if PLANES == 3u && plane == 1u {
                        highest[r] = 65536.0 * wide_t(dots[r]);
                        dots[r] = dots_t();
                    }
                    dots[r] = 256 * dots[r] + span_dot(parts[r], x);
                }
            }
            let scale = x_scales[token * spans + span];
            for (var r = 0u; r < ROWS; r++) {
                let sum = (scale.x / PART_SCALE) * (highest[r] + wide_t(dots[r]));
                sums[t * ROWS + r] += span_sum(grids[r], sum, total, scale);
            }
        }
    }
    let total = reduce_each(sums, lane);
    let token = first_token + lane.index / ROWS;
    let row = first_row + lane.index % ROWS;
    if lane.index < SUMS && token < params.tokens && row < params.rows {
        store_result(token, row, total);
    }
}
