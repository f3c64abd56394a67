// The parts of attention that was split over the keys, put together and rounded to integers, for integer dot products. One
// workgroup: one block of 32 SPAN columns of a head of one token; its lanes take 32 columns at a time, each quarter of them every
// fourth part, as in attention/merge.
@group(0) @binding(0) var<storage, read> parts: array<f32>;                    // (all tokens, heads, splits, head_dim + 2) sums, highest score, total
@group(0) @binding(1) var<storage, read_write> x_codes: array<vec4<u32>>;      // (tokens, 2 SPAN PLANES, blocks)
@group(0) @binding(2) var<storage, read_write> x_scales: array<vec2<f32>>;     // (tokens, blocks)
#import params
override WORKGROUP: u32;
#import reduce
#import integer_block

const COLUMNS: u32 = 32u;
var<workgroup> factors: array<f32, MAX_SPLITS>;
var<workgroup> quarters: array<f32, WORKGROUP>;
var<workgroup> merged: array<vec4<f32>, 8u * SPAN>;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let blocks = params.heads * params.head_dim / (COLUMNS * SPAN);
    let token = index / blocks;
    if token >= params.tokens {
        return;
    }
    let block = index - token * blocks;
    let head = block * COLUMNS * SPAN / params.head_dim;
    let pitch = params.head_dim + 2u;
    let base = ((params.token_start + token) * params.heads + head) * params.splits * pitch;
    // A lane has one part's scores, or none: there are no more parts than lanes.
    let at = base + lane.index * pitch + params.head_dim;
    var highest = -3.0e38;
    if lane.index < params.splits {
        highest = parts[at];
    }
    let highest_of_all = reduce_max(highest, lane);
    var total = 0.0;
    if lane.index < params.splits {
        let factor = exp(highest - highest_of_all);
        factors[lane.index] = factor;
        total = factor * parts[at + 1u];
    }
    // The reduction's barriers also make the factors visible to every lane.
    total = reduce_sum(total, lane);
    let first = block * COLUMNS * SPAN - head * params.head_dim;
    let quarter = lane.index / COLUMNS;
    let own = lane.index % COLUMNS;
    for (var span = 0u; span < SPAN; span++) {
        var sum = 0.0;
        for (var part = quarter; part < params.splits; part += WORKGROUP / COLUMNS) {
            sum += factors[part] * parts[base + part * pitch + first + span * COLUMNS + own];
        }
        quarters[lane.index] = sum;
        workgroupBarrier();
        if quarter == 0u {
            var whole = 0.0;
            for (var other = own; other < WORKGROUP; other += COLUMNS) {
                whole += quarters[other];
            }
            merged[span * 8u + own / 4u][own % 4u] = whole / total;
        }
        workgroupBarrier();
    }
    if lane.index == 0u {
        var values: array<vec4<f32>, 8u * SPAN>;
        for (var i = 0u; i < 8u * SPAN; i++) {
            values[i] = merged[i];
        }
        x_scales[token * blocks + block] = store_integers(values, token, block, blocks);
    }
}
