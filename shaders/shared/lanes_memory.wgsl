// SUMS sums over neighbouring lanes, `count` of them (a power of two) for each, through workgroup memory: every lane gets its
// neighbours' totals. Every lane of the workgroup must call. Needs: LANES, SUMS, memory of LANES * SUMS or more.
fn totals_by_memory(values: array<f32, SUMS>, place: u32, count: u32) -> array<f32, SUMS> {
    var totals = values;
    workgroupBarrier();
#for I in SUMS
    memory[{I}u * LANES + place] = totals[{I}];
#end
    workgroupBarrier();
    let first = place & ~(count - 1u);
    // Each of the neighbours adds up some, and puts the total where the first one's value was.
    for (var i = place - first; i < SUMS; i += count) {
        var total = 0.0;
        for (var other = 0u; other < count; other++) {
            total += memory[i * LANES + first + other];
        }
        memory[i * LANES + first] = total;
    }
    workgroupBarrier();
#for I in SUMS
    totals[{I}] = memory[{I}u * LANES + first];
#end
    return totals;
}
