// Product with few tokens by counting bits: codes and activations as bit planes (copy/planes, matmul/bits), of which every
// pair is ANDed, 32 columns a word. Sums are integers and exact; needs neither f16 nor integer dot products. One workgroup:
// a row of each of 32 lanes, one token; PARTS subgroups of lanes take 128 columns each at a time.
@group(0) @binding(0) var<storage, read> x_planes: array<vec4<u32>>;   // (tokens, units, ACT_BITS): four blocks
@group(0) @binding(1) var<storage, read> x_scales: array<vec2<f32>>;   // (tokens, units, 4): scale, scale * sum
@group(0) @binding(2) var<storage, read> planes: array<vec4<u32>>;     // (rows / 32, units, BITS, 32)
@group(0) @binding(3) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(4) var<storage, read> bias: array<f32>;             // (out_stride), or one unused value
@group(0) @binding(5) var<storage, read_write> result: array<out_t>;   // (all tokens, out_stride)
#import matmul_params
#import block_grid

const WORKGROUP: u32 = 32u * PARTS;
var<workgroup> parts: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let row_blocks = (params.rows + 31u) / 32u;
    let token = index / row_blocks;
    if token >= params.tokens {
        return;
    }
    let first_row = (index - token * row_blocks) * 32u;
    let row = params.row_start + min(first_row + lane % 32u, params.rows - 1u);
    let units = (params.columns + 127u) / 128u;
    let last_block = (params.columns - 1u) / 32u;
    let place = row / 32u * units * BITS * 32u + row % 32u;
    let token_at = (params.token_start + token) * units;
    var total = 0.0;
    for (var unit = lane / 32u; unit < units; unit += PARTS) {
        var dots = vec4(0);
        for (var plane = 0u; plane < BITS; plane++) {
            let word = planes[place + (unit * BITS + plane) * 32u];
            var sum = vec4(0);
            for (var a = 0u; a < ACT_BITS; a++) {
                let both = word & x_planes[(token_at + unit) * ACT_BITS + a];
                let count = vec4<i32>(countOneBits(both)) << vec4(a);
                // The highest bit of two's complement counts below zero.
                sum += select(count, -count, a == ACT_BITS - 1u);
                if ACT_BITS == 1u {
                    // A sign: 1 where no bit is set, -1 where one is.
                    sum += vec4<i32>(countOneBits(word)) - vec4<i32>(countOneBits(both));
                }
            }
            dots += sum << vec4(plane);
        }
        for (var b = 0u; b < 4u; b++) {
            // Behind the last column activations are zero, and so is what scales there might be multiplied by.
            let grid = block_grid(row, min(unit * 4u + b, last_block));
            let scale = x_scales[(token_at + unit) * 4u + b];
            total += grid.x * (scale.x * f32(dots[b])) + grid.y * scale.y;
        }
    }
    parts[lane] = total;
    workgroupBarrier();
    if lane < 32u {
        var sum = 0.0;
        for (var p = 0u; p < PARTS; p++) {
            sum += parts[p * 32u + lane];
        }
        if first_row + lane < params.rows {
            store_result(token, first_row + lane, sum);
        }
    }
}
