// Product with few tokens by lookup (T-MAC, arXiv 2407.00088): a nibble of a bit plane finds, in the table of its four
// columns (matmul/lut_tables), the sum of their activations that it asks for. One workgroup: SETS times 32 lanes with EACH rows
// each, one token or four; PARTS of such sets share tables of PARTS * 128 columns, 128 each. All lanes of a part read the
// same table at a time, so that their reads meet in one bank or in different ones.
@group(0) @binding(0) var<storage, read> tables: array<vec4<act>>;     // (tokens, units, 32, 4): 16 entries
@group(0) @binding(1) var<storage, read> halves: array<vec2<f32>>;     // (tokens, units, 4): sums of half a block
@group(0) @binding(2) var<storage, read> planes: array<vec4<u32>>;     // (rows / 32, units, BITS, 32)
@group(0) @binding(3) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(4) var<storage, read> bias: array<f32>;             // (out_stride), or one unused value
@group(0) @binding(5) var<storage, read_write> result: array<out_t>;   // (all tokens, out_stride)
#import matmul_params
#import block_grid
#import lut_tokens

// Lanes that share a part, and lanes of the workgroup.
const SET: u32 = 32u * SETS;
const WORKGROUP: u32 = SET * PARTS;
// Fours of entries that a lane copies: a part's 32 tables are 128 of them.
const COPIES: u32 = 4u / SETS;
// A table is an entry longer than it need be: what neighbouring lanes write falls into different banks.
const PITCH: u32 = 17u;
var<workgroup> table: array<entry_t, PARTS * 32u * PITCH>;
var<workgroup> parts: array<sum_t, WORKGROUP * EACH>;

// A block's sum of codes times activations: of a plane's bits, each adds its activation where it is set, half of
// (all + signed). Entries are quarters.
fn block_codes(words: array<vec4<u32>, BITS>, b: u32, first: u32, all: sum_t) -> sum_t {
    var sum = sum_t();
    for (var plane = 0u; plane < BITS; plane++) {
        var found = sum_t();
        let word = words[plane][b];
        for (var n = 0u; n < 8u; n++) {
            found += sum_t(table[(first + n) * PITCH + ((word >> (4u * n)) & 15u)]);
        }
        sum += found * f32(2u << plane);
    }
    return sum + all * (0.5 * f32((1u << BITS) - 1u));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let row_blocks = (params.rows + SET * EACH - 1u) / (SET * EACH);
    let first_token = index / row_blocks * TOKENS;
    if first_token >= params.tokens {
        return;
    }
    let first_row = index % row_blocks * SET * EACH;
    let part = lane / SET;
    let own = lane % SET;
    let units = (params.columns + 127u) / 128u;
    let last_block = (params.columns - 1u) / 32u;
    // Vectors of four entries of a token's tables.
    let vectors = units * 128u;
    var tables_at: of_tokens;
    var halves_at: of_tokens;
    for (var t = 0u; t < TOKENS; t++) {
        let token = params.token_start + min(first_token + t, params.tokens - 1u);
        tables_at[t] = token * vectors;
        halves_at[t] = token * units * 4u;
    }
    var rows: array<u32, EACH>;
    var places: array<u32, EACH>;
    var words: array<array<vec4<u32>, BITS>, EACH>;
    var next_table: array<array<vec4<act>, TOKENS>, COPIES>;
    for (var r = 0u; r < EACH; r++) {
        rows[r] = params.row_start + min(first_row + SET * r + own, params.rows - 1u);
        places[r] = rows[r] / 32u * units * BITS * 32u + rows[r] % 32u;
        for (var plane = 0u; plane < BITS; plane++) {
            words[r][plane] = planes[places[r] + (min(part, units - 1u) * BITS + plane) * 32u];
        }
    }
    for (var i = 0u; i < COPIES; i++) {
        let vector = min(i * WORKGROUP + lane, vectors - 1u);
        for (var t = 0u; t < TOKENS; t++) {
            next_table[i][t] = tables[tables_at[t] + vector];
        }
    }
    var sums: array<sum_t, EACH>;
    for (var first = 0u; first < units; first += PARTS) {
        for (var i = 0u; i < COPIES; i++) {
            let vector = i * WORKGROUP + lane;
            for (var j = 0u; j < 4u; j++) {
                table[vector / 4u * PITCH + 4u * (vector % 4u) + j] = entry(next_table[i], j);
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
        for (var i = 0u; i < COPIES; i++) {
            let vector = min((first + PARTS) * 128u + i * WORKGROUP + lane, vectors - 1u);
            for (var t = 0u; t < TOKENS; t++) {
                next_table[i][t] = tables[tables_at[t] + vector];
            }
        }
        workgroupBarrier();
        let unit = first + part;
        if unit < units {
            for (var pair = 0u; pair < 2u; pair++) {
                let block = unit * 4u + 2u * pair;
                let all_low = block_total(halves_at, block);
                let all_high = block_total(halves_at, block + 1u);
                let tables_first = part * 32u + 16u * pair;
                for (var r = 0u; r < EACH; r++) {
                    let low = block_codes(current[r], 2u * pair, tables_first, all_low);
                    let high = block_codes(current[r], 2u * pair + 1u, tables_first + 8u, all_high);
                    // Behind the last column all is zero, and so is what scales there might be multiplied by.
                    let grid = block_grid(rows[r], min(block, last_block));
                    if params.group_shift >= 6u {
                        sums[r] += grid.x * (low + high) + grid.y * (all_low + all_high);
                    } else {
                        let second = block_grid(rows[r], min(block + 1u, last_block));
                        sums[r] += grid.x * low + grid.y * all_low + (second.x * high + second.y * all_high);
                    }
                }
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < EACH; r++) {
        parts[(part * EACH + r) * SET + own] = sums[r];
    }
    workgroupBarrier();
    for (var place = lane; place < SET * EACH; place += WORKGROUP) {
        var total = sum_t();
        for (var p = 0u; p < PARTS; p++) {
            total += parts[p * SET * EACH + place];
        }
        for (var t = 0u; t < TOKENS; t++) {
            if first_row + place < params.rows && first_token + t < params.tokens {
                store_result(first_token + t, first_row + place, of_token(total, t));
            }
        }
    }
}
