// Weights whose scores are among the `keep` largest of their run, of equals the first, and 0 elsewhere. One workgroup: one run.
@group(0) @binding(0) var<storage, read> scores: array<f32>;             // (runs, length)
@group(0) @binding(1) var<storage, read> weight: array<f32>;             // (runs, length)
@group(0) @binding(2) var<storage, read_write> result: array<out_t>;     // (runs, length)
#import params
override WORKGROUP: u32;
#import radix_select

// Of each lane's stretch: keys equal to the one sought.
var<workgroup> equals: array<u32, LANES>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let run = group.y * groups.x + group.x;
    if run >= params.runs {
        return;
    }
    let base = run * params.length;
    radix_select(base, params.length, params.keep, lane);

    // Each lane has a stretch of its own, so that equals are counted in the order of their places.
    let stretch = (params.length + LANES - 1u) / LANES;
    let start = min(lane * stretch, params.length);
    let end = min(start + stretch, params.length);
    var mine = 0u;
    for (var i = start; i < end; i++) {
        mine += u32(order_key(scores[base + i]) == sought);
    }
    equals[lane] = mine;
    workgroupBarrier();
    var before = 0u;
    for (var other = 0u; other < lane; other++) {
        before += equals[other];
    }
    for (var i = start; i < end; i++) {
        let key = order_key(scores[base + i]);
        let same = key == sought;
        let kept = key > sought || (same && before < wanted);
        // Not a product with 0: what goes may be infinite.
        result[base + i] = select(out_t(0.0), out_t(weight[base + i]), kept);
        before += u32(same);
    }
}
