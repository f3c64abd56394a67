// What tokens are drawn by: the softmax of logits over a temperature, of the likeliest tokens alone. One workgroup: one row.
@group(0) @binding(0) var<storage, read> scores: array<f32>;           // (rows, columns) logits
@group(0) @binding(1) var<storage, read> filters: array<vec4<u32>>;    // (rows) 1 / temperature, top-k, top-p, log(min-p)
@group(0) @binding(2) var<storage, read_write> result: array<f32>;     // (rows, columns)
@group(0) @binding(3) var<storage, read_write> peaks: array<f32>;      // (rows, 2) the largest over the temperature, and the sum
#import params
override WORKGROUP: u32;
#import reduce
#import radix_select

// All of a row's mass, in the integers that masses are added up in.
const WHOLE: u32 = 0x80000000u;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    let filter_of_row = filters[row];
    let scale = bitcast<f32>(filter_of_row.x);
    let keep = filter_of_row.y;
    let mass = filter_of_row.z;
    let floor_of_row = bitcast<f32>(filter_of_row.w);
    var highest = -3.4e38;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        // A device may take the maximum with NaN for either.
        let score = scores[base + column];
        if score > highest {
            highest = score;
        }
    }
    highest = reduce_max(highest, lane);
    var sum = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        // A device may take exp of NaN for anything.
        let below = (scores[base + column] - highest) * scale;
        sum += select(exp(below), below, is_nan(below));
    }
    sum = reduce_sum(sum, lane);
    if lane.index == 0u {
        peaks[2u * row] = highest * scale;
        peaks[2u * row + 1u] = sum;
    }

    // The key of the least logit that is kept.
    var least = 0u;
    if keep < params.columns {
        radix_select(base, params.columns, keep, lane.index);
        least = sought;
    }
    if mass < WHOLE {
        var kept = 0.0;
        for (var column = lane.index; column < params.columns; column += WORKGROUP) {
            let score = scores[base + column];
            kept += select(0.0, exp((score - highest) * scale), order_key(score) >= least);
        }
        kept = reduce_sum(kept, lane);
        mass_select(base, least, Masses(highest, scale, f32(WHOLE) / kept, mass), lane.index);
        least = max(least, sought);
    }
    var kept = 0.0;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let score = scores[base + column];
        let below = (score - highest) * scale;
        kept += select(0.0, exp(below), order_key(score) >= least && below >= floor_of_row);
    }
    kept = reduce_sum(kept, lane);
    // Of a row that is not finite nothing is drawn.
    let whole = (bitcast<u32>(sum) & 0x7f800000u) != 0x7f800000u;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let score = scores[base + column];
        let below = (score - highest) * scale;
        let stays = whole && order_key(score) >= least && below >= floor_of_row;
        result[base + column] = select(0.0, exp(below) / kept, stays);
    }
}

// A row's largest logit, 1 / temperature, what makes integers of its masses, and the mass that is kept.
struct Masses {
    highest: f32,
    scale: f32,
    factor: f32,
    wanted: u32,
}

// Finds the key `sought` down to which keys from `least` on are kept, so that the mass of the larger ones is less than `wanted`: as
// radix_select, but counting masses. Integers have one sum, in whatever order lanes add.
fn mass_select(base: u32, least: u32, masses: Masses, lane: u32) {
    if lane == 0u {
        sought = 0u;
        wanted = masses.wanted;
    }
    for (var done = 0u; done < 32u; done += 8u) {
        atomicStore(&histogram[lane], 0u);
        workgroupBarrier();
        let shift = 24u - done;
        let known = 0xffffff00u << shift;
        let beginning = sought;
        for (var i = lane; i < params.columns; i += LANES) {
            let score = scores[base + i];
            let key = order_key(score);
            if key >= least && (key & known) == beginning {
                let mass = exp((score - masses.highest) * masses.scale) * masses.factor;
                atomicAdd(&histogram[(key >> shift) & 255u], u32(mass + 0.5));
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
