// Sums of 32 columns, whose rows are shared among 8 lanes each: a lane gives its part, the first 32 get the totals. The
// parts are added in a fixed order. Every lane of a workgroup of 256 must call, once.
const COLUMNS: u32 = 32u;
const SHARES: u32 = 8u;
var<workgroup> share_parts: array<f32, COLUMNS * SHARES>;

fn sum_of_shares(part: f32, lane: u32) -> f32 {
    share_parts[lane] = part;
    workgroupBarrier();
    var total = 0.0;
    if lane < COLUMNS {
        for (var share = 0u; share < SHARES; share++) {
            total += share_parts[share * COLUMNS + lane];
        }
    }
    return total;
}
