// Which scores are the `keep` largest, of equals the first, and the smallest of them. One workgroup: all scores.
@group(0) @binding(0) var<storage, read> scores: array<f32>;           // (count)
@group(0) @binding(1) var<storage, read_write> mask: array<u32>;       // (count) 0 or 1
@group(0) @binding(2) var<storage, read_write> threshold: array<f32>;  // (1)
#import params
#import radix_select

var<workgroup> equals: array<u32, LANES>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    radix_select(0u, params.count, params.keep, lane);

    // Each lane has a stretch of its own, so that equals are counted in the order of their places.
    let stretch = (params.count + LANES - 1u) / LANES;
    let start = min(lane * stretch, params.count);
    let end = min(start + stretch, params.count);
    var mine = 0u;
    for (var i = start; i < end; i++) {
        mine += u32(order_key(scores[i]) == sought);
    }
    equals[lane] = mine;
    workgroupBarrier();
    var before = 0u;
    for (var other = 0u; other < lane; other++) {
        before += equals[other];
    }
    for (var i = start; i < end; i++) {
        let key = order_key(scores[i]);
        let same = key == sought;
        mask[i] = u32(key > sought || (same && before < wanted));
        before += u32(same);
    }
    if lane == 0u {
        // Back from a key to a score: of NaNs, which have the key 0, some NaN.
        var bits = select(~sought, sought & 0x7fffffffu, sought >> 31u == 1u);
        bits = select(bits, 0x7f800000u, params.keep == 0u);
        threshold[0] = bitcast<f32>(bits);
    }
}
