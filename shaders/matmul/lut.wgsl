// Product with few tokens by lookup (T-MAC, arXiv 2407.00088): a nibble of a bit plane finds, in the table of its four
// columns (matmul/tables), the sum of their activations that it asks for. One workgroup: EACH rows of each of 32 lanes, one
// token; PARTS subgroups of lanes share tables of PARTS * 128 columns, 128 each. All lanes of a part read the same table
// at a time, so that their reads meet in one bank or in different ones.
@group(0) @binding(0) var<storage, read> tables: array<vec4<act>>;     // (tokens, units, 32, 4): 16 entries
@group(0) @binding(1) var<storage, read> halves: array<vec2<f32>>;     // (tokens, units, 4): sums of half a block
@group(0) @binding(2) var<storage, read> planes: array<vec4<u32>>;     // (rows / 32, units, BITS, 32)
@group(0) @binding(3) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(4) var<storage, read> bias: array<f32>;             // (out_stride), or one unused value
@group(0) @binding(5) var<storage, read_write> result: array<out_t>;   // (all tokens, out_stride)
#import matmul_params
#import block_grid

const WORKGROUP: u32 = 32u * PARTS;
// A table is an entry longer than it need be: what neighbouring lanes write falls into different banks.
const PITCH: u32 = 17u;
var<workgroup> table: array<act, WORKGROUP * PITCH>;
var<workgroup> parts: array<f32, WORKGROUP * EACH>;

// A block's sum of codes times activations: of a plane's bits, each adds its activation where it is set, half of
// (all + signed). Entries are quarters.
fn block_codes(words: array<vec4<u32>, BITS>, b: u32, first: u32, all: f32) -> f32 {
    var sum = 0.0;
    for (var plane = 0u; plane < BITS; plane++) {
        var found = 0.0;
        let word = words[plane][b];
        for (var n = 0u; n < 8u; n++) {
            found += f32(table[(first + n) * PITCH + ((word >> (4u * n)) & 15u)]);
        }
        sum += found * f32(2u << plane);
    }
    return sum + all * (0.5 * f32((1u << BITS) - 1u));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let row_blocks = (params.rows + 32u * EACH - 1u) / (32u * EACH);
    let token = index / row_blocks;
    if token >= params.tokens {
        return;
    }
    let first_row = (index - token * row_blocks) * 32u * EACH;
    let part = lane / 32u;
    let units = (params.columns + 127u) / 128u;
    let last_block = (params.columns - 1u) / 32u;
    // Vectors of four entries of this token's tables.
    let vectors = units * 128u;
    let token_at = params.token_start + token;
    var rows: array<u32, EACH>;
    var places: array<u32, EACH>;
    var words: array<array<vec4<u32>, BITS>, EACH>;
    var next_table: array<vec4<act>, 4>;
    for (var r = 0u; r < EACH; r++) {
        rows[r] = params.row_start + min(first_row + 32u * r + lane % 32u, params.rows - 1u);
        places[r] = rows[r] / 32u * units * BITS * 32u + rows[r] % 32u;
        for (var plane = 0u; plane < BITS; plane++) {
            words[r][plane] = planes[places[r] + (min(part, units - 1u) * BITS + plane) * 32u];
        }
    }
    for (var i = 0u; i < 4u; i++) {
        next_table[i] = tables[token_at * vectors + min(i * WORKGROUP + lane, vectors - 1u)];
    }
    var sums: array<f32, EACH>;
    for (var first = 0u; first < units; first += PARTS) {
        for (var i = 0u; i < 4u; i++) {
            let vector = i * WORKGROUP + lane;
            for (var j = 0u; j < 4u; j++) {
                table[vector / 4u * PITCH + 4u * (vector % 4u) + j] = next_table[i][j];
            }
        }
        let current = words;
        // What comes next is on its way while this is looked up.
        let ahead = min(first + PARTS + part, units - 1u);
        for (var r = 0u; r < EACH; r++) {
            for (var plane = 0u; plane < BITS; plane++) {
                words[r][plane] = planes[places[r] + (ahead * BITS + plane) * 32u];
            }
        }
        for (var i = 0u; i < 4u; i++) {
            next_table[i] = tables[token_at * vectors + min(((first + PARTS) * 128u) + i * WORKGROUP + lane, vectors - 1u)];
        }
        workgroupBarrier();
        let unit = first + part;
        if unit < units {
            for (var pair = 0u; pair < 2u; pair++) {
                let block = unit * 4u + 2u * pair;
                let quarters = vec4(halves[token_at * units * 4u + block], halves[token_at * units * 4u + block + 1u]);
                let all = vec2(quarters.x + quarters.y, quarters.z + quarters.w);
                let tables_first = part * 32u + 16u * pair;
                for (var r = 0u; r < EACH; r++) {
                    let low = block_codes(current[r], 2u * pair, tables_first, all.x);
                    let high = block_codes(current[r], 2u * pair + 1u, tables_first + 8u, all.y);
                    // Behind the last column all is zero, and so is what scales there might be multiplied by.
                    let grid = block_grid(rows[r], min(block, last_block));
                    if params.group_shift >= 6u {
                        sums[r] += grid.x * (low + high) + grid.y * (all.x + all.y);
                    } else {
                        let second = block_grid(rows[r], min(block + 1u, last_block));
                        sums[r] += grid.x * low + grid.y * all.x + (second.x * high + second.y * all.y);
                    }
                }
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < EACH; r++) {
        parts[(part * EACH + r) * 32u + lane % 32u] = sums[r];
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
