// A ternary matrix as indices of sums of TRITS weights, for products by lookup (bitnet.cpp's TL1 and TL2, arXiv 2502.11880): a
// lane of a subgroup owns a row, and finds its words beside its neighbour's. One invocation: 128 columns of one row.
// src/kernels/copy/ternary.rs tells the layout.
@group(0) @binding(0) var<storage, read> codes: array<code_t>;       // (rows, code_words)
@group(0) @binding(1) var<storage, read_write> trits: array<u32>;    // (rows / 32, units, WORDS, 32)
#import params
override WORKGROUP: u32;
const WORDS: u32 = 10u - TRITS;
#import code_bytes

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let units = (params.columns + 127u) / 128u;
    let tile = index / (32u * units);
    let unit = index / 32u % units;
    let row = tile * 32u + index % 32u;
    if tile * 32u >= params.rows {
        return;
    }
    var words: array<u32, WORDS>;
    var four = 0u;
    var value = 0;
    var trit = 0u;
    var place = 0u;
    // Three at a time, the last column of a unit is the 129th, which is none.
    for (var within = 0u; within < 126u + TRITS; within++) {
        let column = unit * 128u + within;
        value *= 3;
        if row < params.rows && column < params.columns && within < 128u {
            if within % 4u == 0u {
                four = code_bytes(row, column);
            }
            let code = (four >> (8u * (within % 4u))) & 3u;
            // The fourth code stands for 0 too.
            value += select(i32(code) - 1, 0, code == 3u);
        }
        trit++;
        if trit == TRITS {
            let nibble = 4u * (place % 8u);
            if TRITS == 2u {
                words[place / 8u] |= u32(value + 4) << nibble;
            } else {
                words[place / 8u] |= u32(abs(value)) << nibble;
                let sign = select(0u, 1u, value < 0);
                if place < 32u {
                    words[6] |= sign << place;
                } else {
                    words[5] |= sign << (place - 20u);
                }
            }
            value = 0;
            trit = 0u;
            place++;
        }
    }
    for (var word = 0u; word < WORDS; word++) {
        trits[((tile * units + unit) * WORDS + word) * 32u + index % 32u] = words[word];
    }
}
