// Codes of the levels nearest to a matrix, given its scales. One invocation: one block of 32 codes, that is BITS whole
// words. Every level is tried; of two equally near the lower code wins. The distance from scale * level is taken apart
// into products that are exact in f32, so that it does not matter whether a device fuses them into the differences.
@group(0) @binding(0) var<storage, read> weight: array<f32>;           // (rows, columns)
@group(0) @binding(1) var<storage, read> scales: array<u32>;           // (rows, scale_words)
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;      // (rows, code_words)
#import params
override WORKGROUP: u32;
#import store_block
#import level
#import prepare
#import group_scale

// The upper 12 bits of a significand, and the rest.
fn halves(value: f32) -> vec2<f32> {
    let high = bitcast<f32>(bitcast<u32>(value) & 0xfffff000u);
    return vec2(high, value - high);
}

fn level_distance(value: f32, scale: vec2<f32>, level: vec2<f32>) -> f32 {
    return abs(value - scale.x * level.x - scale.x * level.y - scale.y * level.x - scale.y * level.y);
}

fn nearest_level(value: f32, scale: vec2<f32>) -> u32 {
    var best = 0u;
    var least = level_distance(value, scale, halves(level(0u)));
    for (var code = 1u; code < LEVELS; code++) {
        let candidate = level(code);
        let finite = (bitcast<u32>(candidate) & 0x7f800000u) != 0x7f800000u;
        let away = level_distance(value, scale, halves(candidate));
        if finite && away < least {
            best = code;
            least = away;
        }
    }
    return best;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    prepare_levels(lane, WORKGROUP);
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let blocks = (params.columns + 31u) / 32u;
    let row = index / blocks;
    if row >= params.rows {
        return;
    }
    let first = (index - row * blocks) * 32u;
    let end = min(first + 32u, params.columns);
    for (var column = first; column < end; column++) {
        put_code(nearest_level(weight[row * params.columns + column], halves(group_scale(row, column))), column - first);
    }
    store_block(row * params.code_words + first / 32u * BITS);
}
