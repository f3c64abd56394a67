// Product with few tokens by lookup in tables of bytes (matmul/lut_tables_i8): sums of found entries are integers, exact, and meet
// a scale every 64 columns. One workgroup: EACH rows of each of 32 lanes, one token; the tables of TILE * 128 columns stand in
// workgroup memory at a time, and PARTS subgroups of lanes take 128 columns each in turns. A table is four words: what lanes
// ask for at a time meets in one bank or lies in different ones.
@group(0) @binding(0) var<storage, read> tables: array<vec4<u32>>;     // (tokens, units, 32): 16 entries
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;       // (tokens, units, 2): scale, sums of two blocks
@group(0) @binding(2) var<storage, read> planes: array<vec4<u32>>;     // (rows / 32, units, BITS, 32)
@group(0) @binding(3) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(4) var<storage, read> bias: array<f32>;             // (out_stride), or one unused value
@group(0) @binding(5) var<storage, read_write> result: array<out_t>;   // (all tokens, out_stride)
#import matmul_params
#import block_grid

const WORKGROUP: u32 = 32u * PARTS;
var<workgroup> table: array<u32, TILE * 128u>;
var<workgroup> parts: array<f32, WORKGROUP * EACH>;

// The signed sum of what a block's planes find, each plane twice as much as the one before.
fn block_found(words: array<vec4<u32>, BITS>, b: u32, first: u32) -> i32 {
    var sum = 0;
    for (var plane = 0u; plane < BITS; plane++) {
        var found = 0;
        let word = words[plane][b];
        for (var n = 0u; n < 8u; n++) {
            let nibble = (word >> (4u * n)) & 15u;
            let entries = bitcast<i32>(table[(first + n) * 4u + (nibble >> 2u)]);
            found += extractBits(entries, 8u * (nibble & 3u), 8u);
        }
        sum += found << plane;
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let row_blocks = (params.rows + 32u * EACH - 1u) / (32u * EACH);
    let token = index / row_blocks;
    if token >= params.tokens {
        return;
    }
    let first_row = index % row_blocks * 32u * EACH;
    let part = lane / 32u;
    let units = (params.columns + 127u) / 128u;
    let last_block = (params.columns - 1u) / 32u;
    let token_at = (params.token_start + token) * units;
    var totals: array<f32, EACH>;
    for (var tile = 0u; tile < units; tile += TILE) {
        let count = min(TILE, units - tile);
        for (var place = lane; place < count * 32u; place += WORKGROUP) {
            let four = tables[(token_at + tile) * 32u + place];
            for (var i = 0u; i < 4u; i++) {
                table[4u * place + i] = four[i];
            }
        }
        workgroupBarrier();
        for (var own = part; own < count; own += PARTS) {
            let unit = tile + own;
            for (var r = 0u; r < EACH; r++) {
                let row = params.row_start + min(first_row + 32u * r + lane % 32u, params.rows - 1u);
                let at = row / 32u * units * BITS * 32u + row % 32u;
                var words: array<vec4<u32>, BITS>;
                for (var plane = 0u; plane < BITS; plane++) {
                    words[plane] = planes[at + (unit * BITS + plane) * 32u];
                }
                for (var pair = 0u; pair < 2u; pair++) {
                    let sum = sums[(token_at + unit) * 2u + pair];
                    let first = own * 32u + 16u * pair;
                    let low = block_found(words, 2u * pair, first);
                    let high = block_found(words, 2u * pair + 1u, first + 8u);
                    // Of a plane's bits, each adds its activation where it is set: half of (all + signed).
                    let half = 0.5 * f32((1u << BITS) - 1u);
                    let block = unit * 4u + 2u * pair;
                    // Behind the last column all is zero, and so is what scales there might be multiplied by.
                    let grid = block_grid(row, min(block, last_block));
                    if params.group_shift >= 6u {
                        let all = sum.y + sum.z;
                        totals[r] += grid.x * (sum.x * (0.5 * f32(low + high)) + half * all) + grid.y * all;
                    } else {
                        let second = block_grid(row, min(block + 1u, last_block));
                        totals[r] += grid.x * (sum.x * (0.5 * f32(low)) + half * sum.y) + grid.y * sum.y;
                        totals[r] += second.x * (sum.x * (0.5 * f32(high)) + half * sum.z) + second.y * sum.z;
                    }
                }
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < EACH; r++) {
        parts[(part * EACH + r) * 32u + lane % 32u] = totals[r];
    }
    workgroupBarrier();
    for (var place = lane; place < 32u * EACH; place += WORKGROUP) {
        var total = 0.0;
        for (var p = 0u; p < PARTS; p++) {
            total += parts[p * 32u * EACH + place];
        }
        if first_row + place < params.rows {
            store_result(token, first_row + place, total);
        }
    }
}
