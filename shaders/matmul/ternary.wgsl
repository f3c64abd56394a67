// Product with few tokens of ternary weights by lookup (bitnet.cpp's TL1 and TL2, arXiv 2502.11880): an index (copy/ternary)
// finds, in the table of its TRITS columns, the sum of their integer activations (quantize/activations, 128 columns a scale)
// that it asks for. Sums are integers and exact until the scales meet them; needs neither f16 nor integer dot products. One
// workgroup: a row of each of SETS times 32 lanes, one token; PARTS of such sets take 128 columns each at a time, whose tables
// they build. All lanes of a part read the same table at a time: words in different banks.
@group(0) @binding(0) var<storage, read> x_codes: array<u32>;          // (tokens, 8 PLANES, units, 4)
@group(0) @binding(1) var<storage, read> x_scales: array<vec2<f32>>;   // (tokens, units): scale, scale * sum
@group(0) @binding(2) var<storage, read> trits: array<u32>;            // (rows / 32, units, WORDS, 32)
@group(0) @binding(3) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(4) var<storage, read> bias: array<f32>;             // (out_stride), or one unused value
@group(0) @binding(5) var<storage, read_write> result: array<out_t>;   // (all tokens, out_stride)
#import matmul_params
#import group_scale

// Lanes that share a part, and lanes of the workgroup.
const SET: u32 = 32u * SETS;
const WORKGROUP: u32 = SET * PARTS;
// Tables that a lane builds, at most.
const COPIES: u32 = 2u / SETS;
const WORDS: u32 = 10u - TRITS;
// Tables of a unit, and words of one: an odd number, so that what neighbouring lanes write falls into different banks.
const TABLES: u32 = select(43u, 64u, TRITS == 2u);
const PITCH: u32 = select(15u, 9u, TRITS == 2u);
var<workgroup> table: array<i32, PARTS * TABLES * PITCH>;
var<workgroup> parts: array<f32, WORKGROUP>;

// An activation of a unit of 128 columns.
fn integer_at(token: u32, unit: u32, units: u32, within: u32) -> i32 {
    var value = 0;
    for (var plane = 0u; plane < PLANES; plane++) {
        let piece = (token * PLANES + PLANES - 1u - plane) * 8u + within / 16u;
        let word = x_codes[(piece * units + unit) * 4u + within % 16u / 4u];
        value = 256 * value + (bitcast<i32>(word << (24u - 8u * (within % 4u))) >> 24u);
    }
    return value;
}

// Those of a table; behind the last column of a unit the weight is 0, whatever stands here.
fn integers_of(token: u32, unit: u32, units: u32, place: u32) -> vec3<i32> {
    let first = TRITS * min(place, TABLES - 1u);
    var all = vec3(integer_at(token, unit, units, first), integer_at(token, unit, units, first + 1u), 0);
    if TRITS == 3u {
        all.z = integer_at(token, unit, units, min(first + 2u, 127u));
    }
    return all;
}

// Every sum there is of two, or of three up to its sign.
fn store_table(first: u32, x: vec3<i32>) {
    if TRITS == 2u {
        table[first] = -x.x - x.y;
        table[first + 1u] = -x.x;
        table[first + 2u] = x.y - x.x;
        table[first + 3u] = -x.y;
        table[first + 4u] = 0;
        table[first + 5u] = x.y;
        table[first + 6u] = x.x - x.y;
        table[first + 7u] = x.x;
        table[first + 8u] = x.x + x.y;
    } else {
        table[first] = 0;
        table[first + 1u] = x.z;
        for (var i = 0u; i < 3u; i++) {
            let z = x.z * (i32(i) - 1);
            table[first + 2u + i] = x.y + z;
            table[first + 5u + i] = x.x - x.y + z;
            table[first + 8u + i] = x.x + z;
            table[first + 11u + i] = x.x + x.y + z;
        }
    }
}

// The sum of a unit of a row, whose tables stand from `first` on.
fn unit_sum(words: array<u32, WORDS>, first: u32) -> i32 {
    var sum = 0;
    if TRITS == 2u {
        for (var w = 0u; w < 8u; w++) {
            for (var n = 0u; n < 8u; n++) {
                sum += table[first + (8u * w + n) * PITCH + ((words[w] >> (4u * n)) & 15u)];
            }
        }
        return sum;
    }
    for (var w = 0u; w < 6u; w++) {
        let signs = select(words[6] >> ((8u * w) & 31u), words[5] >> ((8u * w + 12u) & 31u), w > 3u);
        for (var n = 0u; n < select(8u, 3u, w == 5u); n++) {
            // All bits where the sign is set: what is flipped lacks one to be the negative.
            let below = bitcast<i32>(signs << (31u - n)) >> 31u;
            sum += table[first + (8u * w + n) * PITCH + ((words[w] >> (4u * n)) & 15u)] ^ below;
        }
    }
    return sum + i32(countOneBits(words[6]) + countOneBits(words[5] >> 12u));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let row_blocks = (params.rows + SET - 1u) / SET;
    let token = index / row_blocks;
    if token >= params.tokens {
        return;
    }
    let first_row = (index - token * row_blocks) * SET;
    let part = lane / SET;
    let own = lane % SET;
    let units = (params.columns + 127u) / 128u;
    let token_at = params.token_start + token;
    let tables = part * TABLES * PITCH;
    let row = params.row_start + min(first_row + own, params.rows - 1u);
    let place = row / 32u * units * WORDS * 32u + row % 32u;
    var words: array<u32, WORDS>;
    var next: array<vec3<i32>, COPIES>;
    for (var w = 0u; w < WORDS; w++) {
        words[w] = trits[place + (min(part, units - 1u) * WORDS + w) * 32u];
    }
    for (var i = 0u; i < COPIES; i++) {
        next[i] = integers_of(token_at, min(part, units - 1u), units, i * SET + own);
    }
    var sum = 0.0;
    for (var start = 0u; start < units; start += PARTS) {
        for (var i = 0u; i < COPIES; i++) {
            let at = i * SET + own;
            if at < TABLES {
                store_table(tables + at * PITCH, next[i]);
            }
        }
        let current = words;
        // What comes next is on its way while this is looked up.
        let ahead = min(start + PARTS + part, units - 1u);
        for (var w = 0u; w < WORDS; w++) {
            words[w] = trits[place + (ahead * WORDS + w) * 32u];
        }
        for (var i = 0u; i < COPIES; i++) {
            next[i] = integers_of(token_at, ahead, units, i * SET + own);
        }
        workgroupBarrier();
        let unit = start + part;
        if unit < units {
            let scale = group_scale(row, unit * 128u);
            sum += scale * (x_scales[token_at * units + unit].x * f32(unit_sum(current, tables)));
        }
        workgroupBarrier();
    }
    parts[lane] = sum;
    workgroupBarrier();
    if lane < SET {
        var total = 0.0;
        for (var p = 0u; p < PARTS; p++) {
            total += parts[p * SET + lane];
        }
        if first_row + lane < params.rows {
            store_result(token, first_row + lane, total);
        }
    }
}
