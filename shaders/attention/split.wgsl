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
// Lanes' columns at the end: so far apart that lanes side by side meet different banks.
const PITCH: u32 = LANES + 4u;
var<workgroup> memory: array<f32, max(LANES * SUMS, PITCH * 8u + LANES)>;
var<workgroup> tops: array<f32, LANES * HEADS>;

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
    // Lanes behind a head's last eight read that again, and count for nothing.
    let eight = kv_head * eights + min(member, eights - 1u);
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
        // Every load stands before the first use, without a branch: behind the end, of the last key.
#for R in ROWS
        let exists{R} = start + {R}u * at_once + keeper < end;
        let row{R} = sequence * params.capacity + min(start + {R}u * at_once + keeper, end - 1u);
        let key_codes{R} = key[row{R} * row_eights + eight];
        let value_codes{R} = value[row{R} * row_eights + eight];
        var key_mark{R} = 0u;
        var value_mark{R} = 0u;
        if SCALE > 0u {
            key_mark{R} = key_scales[grid_place(row{R}, eight * 8u)];
            value_mark{R} = value_scales[grid_place(row{R}, eight * 8u)];
        }
#end
#for R in ROWS
        let key{R} = eight_values(key_codes{R}, grid_of(key_mark{R}, eight * 8u));
#end
#import split_scores
#for R in ROWS
        let value{R} = eight_values(value_codes{R}, grid_of(value_mark{R}, eight * 8u));
#end
#import split_sums
    }
#import split_end
}
