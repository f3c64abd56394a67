// A token for each row of weights, each as likely as its weight is large: the one whose weight over an exponential number is largest;
// or the one of the largest weight, where a row does not draw. One workgroup: one row.
@group(0) @binding(0) var<storage, read> weights: array<f32>;          // (rows, columns)
@group(0) @binding(1) var<storage, read> places: array<u32>;           // (rows)
@group(0) @binding(2) var<storage, read> chances: array<u32>;          // (rows, 3) a seed's low and high word; 1: draws, 0: does not
@group(0) @binding(3) var<storage, read_write> drawn: array<u32>;      // (rows)
#import params
override WORKGROUP: u32;
#import reduce
#import random_exponential

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    let place = places[row];
    let seed = vec2(chances[3u * row], chances[3u * row + 1u]);
    let draws = chances[3u * row + 2u] != 0u;
    var largest = 0.0;
    var mine = 0u;
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let weight = weights[base + column];
        if weight > 0.0 {
            var score = weight;
            if draws {
                score = weight / random_exponential(vec4(column, place, seed));
            }
            if score > largest {
                largest = score;
                mine = column;
            }
        }
    }
    let maximum = reduce_max(largest, lane);
    // The least column is the largest negative one; f32 holds it exactly below 2^24.
    let first = reduce_max(select(-3.0e38, -f32(mine), largest == maximum), lane);
    if lane.index == 0u {
        drawn[row] = u32(-first);
    }
}
