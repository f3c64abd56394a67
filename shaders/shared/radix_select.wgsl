// Finds the key of the `keep`-th largest of `count` scores from `base` on, `sought`, and how many of those that have it are
// among the largest, `wanted`. Needs: scores. All of 256 lanes must call.
//
// A radix selection: of the keys that begin as the one sought does, a histogram of the next 8 bits tells how it goes on.
// Counts are the same in whatever order lanes add to them, so every run finds the same.
#import order_key

const LANES: u32 = 256u;
var<workgroup> histogram: array<atomic<u32>, 256>;
// How the key sought begins, and how many of the keys that begin so are kept.
var<workgroup> sought: u32;
var<workgroup> wanted: u32;

fn radix_select(base: u32, count: u32, keep: u32, lane: u32) {
    if lane == 0u {
        sought = 0u;
        wanted = keep;
    }
    for (var done = 0u; done < 32u; done += 8u) {
        atomicStore(&histogram[lane], 0u);
        workgroupBarrier();
        let shift = 24u - done;
        // The bits that are known: none at first.
        let known = 0xffffff00u << shift;
        let beginning = sought;
        for (var i = lane; i < count; i += LANES) {
            let key = order_key(scores[base + i]);
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
}
