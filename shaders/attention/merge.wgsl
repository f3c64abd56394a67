// The parts of attention that was split over the keys, put together. One workgroup: one head of one token; its lanes take 64
// columns at a time, each quarter of them every fourth part.
@group(0) @binding(0) var<storage, read> parts: array<f32>;            // (all tokens, heads, splits, head_dim + 2) sums, highest score, total
@group(0) @binding(1) var<storage, read_write> result: array<out_t>;   // (all tokens, heads, head_dim)
#import params
override WORKGROUP: u32;
#import reduce

const COLUMNS: u32 = 64u;
var<workgroup> factors: array<f32, MAX_SPLITS>;
var<workgroup> quarters: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    if index >= params.tokens * params.heads {
        return;
    }
    let row = params.token_start * params.heads + index;
    let pitch = params.head_dim + 2u;
    let base = row * params.splits * pitch;
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
    let quarter = lane.index / COLUMNS;
    for (var first = 0u; first < params.head_dim; first += COLUMNS) {
        let column = first + lane.index % COLUMNS;
        var sum = 0.0;
        if column < params.head_dim {
            for (var part = quarter; part < params.splits; part += WORKGROUP / COLUMNS) {
                sum += factors[part] * parts[base + part * pitch + column];
            }
        }
        quarters[lane.index] = sum;
        workgroupBarrier();
        if quarter == 0u && column < params.head_dim {
            var whole = 0.0;
            for (var other = lane.index; other < WORKGROUP; other += COLUMNS) {
                whole += quarters[other];
            }
            result[row * params.head_dim + column] = out_t(whole / total);
        }
        workgroupBarrier();
    }
}
