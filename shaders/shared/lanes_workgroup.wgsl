// Sums over neighbouring lanes where there are no subgroup operations. Every lane of the workgroup must call.
#import lanes_memory
struct Place {
    @builtin(local_invocation_index) index: u32,
}

fn place_of(place: Place) -> u32 {
    return place.index;
}

fn lane_totals(values: array<f32, SUMS>, place: Place, count: u32) -> array<f32, SUMS> {
    return totals_by_memory(values, place.index, count);
}
