// One new token of each sequence: its query and its key rotated, its key and value written behind what the cache holds, and causal
// attention over that, split over the keys: what rope/enter and attention/split do one after the other. One workgroup: as in
// attention/split; it rotates its own heads, and the part that has the newest key takes that from its own registers.
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;          // (sequences, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;            // (sequences, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<vec4<act>>;          // likewise
@group(0) @binding(3) var<storage, read> rotations: array<vec2<f32>>;      // (positions, head_dim / 2) cosine and sine
@group(0) @binding(4) var<storage, read> past: array<u32>;                 // (sequences) tokens seen before
@group(0) @binding(5) var<storage, read_write> keys: array<vec4<act>>;     // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(6) var<storage, read_write> values: array<vec4<act>>;   // likewise
@group(0) @binding(7) var<storage, read_write> parts: array<f32>;          // (sequences, heads, splits, head_dim + 2)
#import params
#import lanes
#import soft_cap

const LANES: u32 = 128u;
const NOTHING: f32 = -3.0e38;
// Lanes' columns at the end: so far apart that lanes side by side meet different banks.
const PITCH: u32 = LANES + 4u;
var<workgroup> memory: array<f32, max(LANES * SUMS, PITCH * 8u + LANES)>;
var<workgroup> tops: array<f32, LANES * HEADS>;
// The newest key and value, four vectors for each eight of their columns: registers would be held by every lane throughout.
var<workgroup> newest: array<vec4<f32>, 4u * 32u>;

// Eight columns as the cache stores them.
fn stored(columns: mat2x4<f32>) -> mat2x4<f32> {
    return mat2x4(vec4<f32>(vec4<act>(columns[0])), vec4<f32>(vec4<act>(columns[1])));
}

// Eight columns of a head turned, given those half a head away; the sines of the first half are negative.
fn turned(own: mat2x4<f32>, other: mat2x4<f32>, cosines: mat2x4<f32>, sines: mat2x4<f32>) -> mat2x4<f32> {
    return stored(mat2x4(own[0] * cosines[0] + other[0] * sines[0], own[1] * cosines[1] + other[1] * sines[1]));
}

@compute @workgroup_size(LANES)
fn main(place: Place, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let each = params.heads / params.kv_heads;
    let shares = (each + HEADS - 1u) / HEADS;
    let line = index / params.splits;
    let split = index - line * params.splits;
    let kv_head = line / shares % params.kv_heads;
    let token = line / shares / params.kv_heads;
    if token >= params.sequences {
        return;
    }
    let first_head = kv_head * each + line % shares * HEADS;
    let present = min(HEADS, (kv_head + 1u) * each - first_head);
    let position = past[token];
    // The part's keys.
    let seen = min(params.window, position + 1u);
    let own_keys = (seen + params.splits - 1u) / params.splits;
    let begin = position + 1u - seen + split * own_keys;
    let end = min(begin + own_keys, position + 1u);

    let eights = params.head_dim / 8u;
    let lane = place_of(place);
    let member = lane % params.sharers;
    let keeper = lane / params.sharers;
    let at_once = LANES / params.sharers;
    // Lanes behind a head's last eight read that again, and count for nothing.
    let eight = min(member, eights - 1u);
    let lower = eight < eights / 2u;
    let partner = select(eight - eights / 2u, eight + eights / 2u, lower);
    let first_turn = position * params.head_dim / 2u + 8u * min(eight, partner);
    var cosines = mat2x4<f32>();
    var sines = mat2x4<f32>();
#for C in 8
    let turn{C} = rotations[first_turn + {C}u];
    cosines[{C}u / 4u][{C}u % 4u] = turn{C}.x;
    sines[{C}u / 4u][{C}u % 4u] = select(turn{C}.y, -turn{C}.y, lower);
#end
#for H in HEADS
    var query{H} = mat2x4<f32>();
    if member < eights && {H}u < present {
        let head = (token * params.heads + first_head + {H}u) * eights;
        let own = mat2x4(vec4<f32>(query[2u * (head + eight)]), vec4<f32>(query[2u * (head + eight) + 1u]));
        let other = mat2x4(vec4<f32>(query[2u * (head + partner)]), vec4<f32>(query[2u * (head + partner) + 1u]));
        query{H} = params.scale * turned(own, other, cosines, sines);
    }
    var highest{H} = NOTHING;
    var total{H} = 0.0;
    var sum{H} = mat2x4<f32>();
#end
    let row_eights = params.kv_heads * eights;
    let first_eight = token * params.capacity * row_eights + kv_head * eights + eight;
    if keeper == 0u && member < eights {
        let head = 2u * (token * params.kv_heads + kv_head) * eights;
        let own = mat2x4(vec4<f32>(key[head + 2u * eight]), vec4<f32>(key[head + 2u * eight + 1u]));
        let other = mat2x4(vec4<f32>(key[head + 2u * partner]), vec4<f32>(key[head + 2u * partner + 1u]));
        let rotated = turned(own, other, cosines, sines);
        newest[4u * eight] = rotated[0];
        newest[4u * eight + 1u] = rotated[1];
        newest[4u * eight + 2u] = vec4<f32>(value[head + 2u * eight]);
        newest[4u * eight + 3u] = vec4<f32>(value[head + 2u * eight + 1u]);
        if begin <= position && end == position + 1u && line % shares == 0u {
            let at = 2u * (first_eight + position * row_eights);
            keys[at] = vec4<act>(rotated[0]);
            keys[at + 1u] = vec4<act>(rotated[1]);
            values[at] = value[head + 2u * eight];
            values[at + 1u] = value[head + 2u * eight + 1u];
        }
    }
    workgroupBarrier();
    for (var start = begin; start < end; start += ROWS * at_once) {
        // Every load stands before the first use, without a branch: behind the last old key, of that; where there is none, of what
        // counts for nothing.
#for R in ROWS
        let exists{R} = start + {R}u * at_once + keeper < end;
        let is_newest{R} = start + {R}u * at_once + keeper >= position;
        let at{R} = 2u * (first_eight + min(start + {R}u * at_once + keeper, max(position, 1u) - 1u) * row_eights);
        let key_low{R} = vec4<f32>(keys[at{R}]);
        let key_high{R} = vec4<f32>(keys[at{R} + 1u]);
        let value_low{R} = vec4<f32>(values[at{R}]);
        let value_high{R} = vec4<f32>(values[at{R} + 1u]);
#end
#for R in ROWS
        var key{R} = mat2x4(key_low{R}, key_high{R});
        if is_newest{R} {
            key{R} = mat2x4(newest[4u * eight], newest[4u * eight + 1u]);
        }
#end
#import split_scores
#for R in ROWS
        var value{R} = mat2x4(value_low{R}, value_high{R});
        if is_newest{R} {
            value{R} = mat2x4(newest[4u * eight + 2u], newest[4u * eight + 3u]);
        }
#end
#import split_sums
    }
#import split_end
}
