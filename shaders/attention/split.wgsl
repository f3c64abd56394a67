// Causal attention of few tokens over a cache of any type, split over the keys: each part by itself, with its highest score.
// One workgroup: up to HEADS query heads of a key-value head, so that keys are read once, of one token over one part of the
// keys that it sees. As many neighbouring lanes as a head has eights of columns share a key, ROWS keys at once; every such
// group of lanes keeps a running softmax of its own, and they are merged at the end.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;          // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<eight_t>;              // (sequences, capacity, code_words)
@group(0) @binding(2) var<storage, read> key_scales: array<u32>;           // (sequences, capacity, scale_words), or one unused word
@group(0) @binding(3) var<storage, read> value: array<eight_t>;            // (sequences, capacity, code_words)
@group(0) @binding(4) var<storage, read> value_scales: array<u32>;         // (sequences, capacity, scale_words), or one unused word
@group(0) @binding(5) var<storage, read> past: array<u32>;                 // (sequences) tokens seen before
@group(0) @binding(6) var<storage, read_write> parts: array<f32>;          // (all tokens, heads, splits, head_dim + 2)
#import params
#import cached
#import cached_grid
#import lanes
#import soft_cap

const LANES: u32 = 128u;
const NOTHING: f32 = -3.0e38;
var<workgroup> memory: array<f32, LANES * max(SUMS, 8u)>;
var<workgroup> known: array<vec2<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(place: Place, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let each = params.heads / params.kv_heads;
    let shares = (each + HEADS - 1u) / HEADS;
    let line = index / params.splits;
    let split = index - line * params.splits;
    let kv_head = line / shares % params.kv_heads;
    let order = line / shares / params.kv_heads;
    if order >= params.tokens {
        return;
    }
    let token = params.token_start + order;
    let first_head = kv_head * each + line % shares * HEADS;
    let present = min(HEADS, (kv_head + 1u) * each - first_head);
    let sequence = token / params.tokens_per_sequence;
    let position = past[sequence] + token - sequence * params.tokens_per_sequence;
    // The part's keys.
    let seen = min(params.window, position + 1u);
    let keys = (seen + params.splits - 1u) / params.splits;
    let begin = position + 1u - seen + split * keys;
    let end = min(begin + keys, position + 1u);

    let eights = params.head_dim / 8u;
    let lane = place_of(place);
    let member = lane % params.sharers;
    let keeper = lane / params.sharers;
    let at_once = LANES / params.sharers;
    let column = kv_head * params.head_dim + member * 8u;
    let row_eights = params.code_words * 4u / BITS;
#for H in HEADS
    var query{H} = mat2x4<f32>();
    if member < eights && {H}u < present {
        let at = 2u * ((token * params.heads + first_head + {H}u) * eights + member);
        query{H} = params.scale * mat2x4(vec4<f32>(query[at]), vec4<f32>(query[at + 1u]));
    }
    var highest{H} = NOTHING;
    var total{H} = 0.0;
    var sum{H} = mat2x4<f32>();
#end
    for (var start = begin; start < end; start += ROWS * at_once) {
#for R in ROWS
        let at{R} = start + {R}u * at_once + keeper;
        let exists{R} = at{R} < end;
        var key{R} = mat2x4<f32>();
        var value{R} = mat2x4<f32>();
        if exists{R} && member < eights {
            let row = sequence * params.capacity + at{R};
            var key_grid = vec2(0.0);
            var value_grid = vec2(0.0);
            if SCALE > 0u {
                let grid = grid_place(row, column);
                key_grid = grid_of(key_scales[grid], column);
                value_grid = grid_of(value_scales[grid], column);
            }
            let eight = row * row_eights + column / 8u;
            key{R} = eight_values(key[eight], key_grid);
            value{R} = eight_values(value[eight], value_grid);
        }
#end
        var products: array<f32, SUMS>;
#for R in ROWS
#for H in HEADS
        products[{R}u * HEADS + {H}u] = dot(query{H}[0], key{R}[0]) + dot(query{H}[1], key{R}[1]);
#end
#end
        var scores = lane_totals(products, place, params.sharers);
        if params.soft_cap > 0.0 {
#for I in SUMS
            scores[{I}] = soft_capped(scores[{I}], params.soft_cap);
#end
        }
#for H in HEADS
        {
            var highest = highest{H};
#for R in ROWS
            let score{R} = scores[{R}u * HEADS + {H}u];
            highest = select(highest, score{R}, exists{R} && score{R} > highest);
#end
            let correction = exp(highest{H} - highest);
            highest{H} = highest;
            total{H} *= correction;
            sum{H} *= correction;
            // NaN scores never win the maximum above; let them through here.
#for R in ROWS
            if exists{R} {
                let weight = exp(score{R} - highest);
                total{H} += weight;
                sum{H} += weight * value{R};
            }
#end
        }
#end
    }
#for H in HEADS
    workgroupBarrier();
    known[lane] = vec2(highest{H}, total{H});
#for C in 8
    memory[{C}u * LANES + lane] = sum{H}[{C}u / 4u][{C}u % 4u];
#end
    workgroupBarrier();
    if {H}u < present {
        var highest = NOTHING;
        for (var other = 0u; other < at_once; other++) {
            highest = max(highest, known[other * params.sharers].x);
        }
        let base = ((token * params.heads + first_head + {H}u) * params.splits + split) * (params.head_dim + 2u);
        for (var mine = lane; mine < params.head_dim + 1u; mine += LANES) {
            var whole = 0.0;
            for (var other = 0u; other < at_once; other++) {
                let theirs = other * params.sharers;
                var part = known[theirs].y;
                if mine < params.head_dim {
                    part = memory[mine % 8u * LANES + theirs + mine / 8u];
                }
                whole += part * exp(known[theirs].x - highest);
            }
            // The total stands last, behind the highest score.
            parts[base + select(mine, mine + 1u, mine == params.head_dim)] = whole;
        }
        if lane == 0u {
            parts[base + params.head_dim] = highest;
        }
    }
#end
}
