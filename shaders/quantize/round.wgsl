// Codes of the values nearest to a matrix, on the grid that its scales span. One invocation: one block of 32 codes, that
// is BITS whole words. The nearest code is found by comparing distances, which are exact or rounded once, so every
// device gives the same bits; a tie goes to the lower code.
@group(0) @binding(0) var<storage, read> weight: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;      // (rows, code_words)
#import params
override WORKGROUP: u32;
#import store_block
#import nearest_code

// Scale and second number of a column's group; for a symmetric group the second is its zero point.
fn grid(row: u32, column: u32) -> vec2<f32> {
    let group = column >> params.group_shift;
    if SCALE == 1u {
        let pair = unpack2x16float(scales[row * params.scale_words + (group >> 1u)]);
        return vec2(select(pair.x, pair.y, (group & 1u) == 1u), f32(1u << (BITS - 1u)));
    }
    return unpack2x16float(scales[row * params.scale_words + group]);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let blocks = (params.columns + 31u) / 32u;
    let row = index / blocks;
    if row >= params.rows {
        return;
    }
    let first = (index - row * blocks) * 32u;
    let end = min(first + 32u, params.columns);
    for (var column = first; column < end; column++) {
        put_code(nearest(weight[row * params.columns + column], grid(row, column)), column - first);
    }
    store_block(row * params.code_words + first / 32u * BITS);
}
