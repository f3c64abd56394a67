// Product of integer activations with integer codes, four products at a time. One workgroup: ROWS weight rows, TOKENS
// tokens; one invocation: a block of 32 columns of each row at a time. Activations come as planes of signed bytes, laid out
// so that neighbouring invocations load neighbouring vectors (quantize/activations). The codes of a block are summed as
// they stand; their zero point or offset meets the block's sum of activations afterwards. Groups are whole blocks.
#import matmul_params
@group(0) @binding(0) var<storage, read> x_codes: array<vec4<u32>>;    // (tokens, 2 PLANES, blocks)
@group(0) @binding(1) var<storage, read> x_scales: array<vec2<f32>>;   // (tokens, blocks): scale, scale * sum
@group(0) @binding(2) var<storage, read> codes: array<code_t>;         // (rows, code_words)
@group(0) @binding(3) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(4) var<storage, read> bias: array<f32>;             // (out_stride), or one unused value
@group(0) @binding(5) var<storage, read_write> result: array<out_t>;   // (all tokens, out_stride)
#import block_bytes
#import block_grid
const SUMS: u32 = ROWS * TOKENS;
#import reduce_each

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
    let blocks = (params.columns + 31u) / 32u;
    var sums: array<f32, SUMS>;
    for (var block = lane.index; block < blocks; block += WORKGROUP) {
        var bytes: array<array<u32, 8>, ROWS>;
        var grids: array<vec2<f32>, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            let row = params.row_start + min(first_row + r, params.rows - 1u);
            bytes[r] = block_bytes(block_load(row, block));
            if BITS == 8u {
                for (var quad = 0u; quad < 8u; quad++) {
                    bytes[r][quad] ^= 0x80808080u;
                }
            }
            if SCALE == 4u {
                // Ternary codes of 3 stand for 0, as 1 does.
                for (var quad = 0u; quad < 8u; quad++) {
                    let four = bytes[r][quad];
                    bytes[r][quad] = four ^ ((four & (four >> 1u) & 0x01010101u) << 1u);
                }
            }
            grids[r] = block_grid(row, block);
        }
        for (var t = 0u; t < TOKENS; t++) {
            let token = params.token_start + min(first_token + t, params.tokens - 1u);
            var dots: array<i32, ROWS>;
            var highest: array<f32, ROWS>;
            // The highest plane first: what is summed so far counts 256 times as much as the next. Of three planes the
            // highest is kept apart, for an integer of 32 bits does not hold them all.
            for (var plane = 0u; plane < PLANES; plane++) {
                for (var r = 0u; r < ROWS; r++) {
                    if PLANES == 3u && plane == 1u {
                        highest[r] = 65536.0 * f32(dots[r]);
                        dots[r] = 0;
                    }
                    dots[r] *= 256;
                }
                for (var half = 0u; half < 2u; half++) {
                    let piece = 2u * (PLANES - 1u - plane) + half;
                    let four = x_codes[(token * 2u * PLANES + piece) * blocks + block];
                    for (var r = 0u; r < ROWS; r++) {
                        dots[r] += dot4I8Packed(bytes[r][4u * half], four.x)
                            + dot4I8Packed(bytes[r][4u * half + 1u], four.y)
                            + dot4I8Packed(bytes[r][4u * half + 2u], four.z)
                            + dot4I8Packed(bytes[r][4u * half + 3u], four.w);
                    }
                }
            }
            let scale = x_scales[token * blocks + block];
            for (var r = 0u; r < ROWS; r++) {
                sums[t * ROWS + r] += grids[r].x * (scale.x * (highest[r] + f32(dots[r]))) + grids[r].y * scale.y;
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
