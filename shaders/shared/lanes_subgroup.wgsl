// Sums over neighbouring lanes by subgroup operations, where a subgroup holds as many; through workgroup memory elsewhere. The
// lanes of a subgroup are neighbours, and subgroups are full. Every lane of the workgroup must call.
#import lanes_memory
struct Place {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) within: u32,
}

fn place_of(place: Place) -> u32 {
    return place.subgroup * (LANES / place.subgroups) + place.within;
}

fn lane_totals(values: array<f32, SUMS>, place: Place, count: u32) -> array<f32, SUMS> {
    if count > LANES / place.subgroups {
        return totals_by_memory(values, place_of(place), count);
    }
    var totals = values;
    for (var distance = 1u; distance < count; distance *= 2u) {
#for I in SUMS
        totals[{I}] += subgroupShuffleXor(totals[{I}], distance);
#end
    }
    return totals;
}
