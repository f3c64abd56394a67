// Which scores are the `keep` largest, of equals the first, and the smallest of them. One workgroup: all scores.
//
// A radix selection: of the keys that begin as the one sought does, a histogram of the next 8 bits tells how it goes on.
// Counts are the same in whatever order lanes add to them, so every run gives the same mask.
@group(0) @binding(0) var<storage, read> scores: array<f32>;           // (count)
@group(0) @binding(1) var<storage, read_write> mask: array<u32>;       // (count) 0 or 1
@group(0) @binding(2) var<storage, read_write> threshold: array<f32>;  // (1)
#import params
#import order_key

const LANES: u32 = 256u;
var<workgroup> histogram: array<atomic<u32>, 256>;
var<workgroup> equals: array<u32, LANES>;
// How the key sought begins, and how many of the keys that begin so are kept.
var<workgroup> sought: u32;
var<workgroup> wanted: u32;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    if lane == 0u {
        sought = 0u;
        wanted = params.keep;
    }
    for (var done = 0u; done < 32u; done += 8u) {
        atomicStore(&histogram[lane], 0u);
        workgroupBarrier();
        let shift = 24u - done;
        // The bits that are known: none at first.
        let known = 0xffffff00u << shift;
        let beginning = sought;
        for (var i = lane; i < params.count; i += LANES) {
            let key = order_key(scores[i]);
            if (key & known) == beginning {
                atomicAdd(&histogram[(key >> shift) & 255u], 1u);
            }
        }
        workgroupBarrier();
        if lane == 0u {
            var above = 0u;
            var digit = 255u;
            for (var low = 0u; low < 255u; low++) {
                let here = atomicLoad(&histogram[digit]);
                if above + here >= wanted {
                    break;
                }
                above += here;
                digit--;
            }
            sought = beginning | (digit << shift);
            wanted -= above;
        }
        workgroupBarrier();
    }

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
