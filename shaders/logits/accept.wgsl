// How many drafted tokens stay, and the token after them. One workgroup: one sequence.
@group(0) @binding(0) var<storage, read> likely: array<f32>;           // (drafts + 1, columns)
@group(0) @binding(1) var<storage, read> drafted_by: array<f32>;       // (drafts, draft_columns)
@group(0) @binding(2) var<storage, read> drafted: array<u32>;          // (drafts)
@group(0) @binding(3) var<storage, read_write> result: array<u32>;     // (2) accepted, the token after those
#import params
override WORKGROUP: u32;
#import reduce
#import random_exponential

// What a draft gave a token; a draft that does not draw gave its own all.
fn draft_chance(row: u32, token: u32) -> f32 {
    if params.certain == 1u {
        return f32(token == drafted[row]);
    }
    if token >= params.draft_columns {
        return 0.0;
    }
    return drafted_by[row * params.draft_columns + token];
}

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    var accepted = 0u;
    for (var draft = 0u; draft < params.drafts; draft++) {
        let token = drafted[draft];
        let hash = pcg4d(vec4(0xffffffffu, params.place + draft, params.seed_low, params.seed_high));
        let uniform_number = (f32(hash) + 0.5) * 2.3283064365386963e-10;
        let stays = uniform_number * draft_chance(draft, token) < likely[draft * params.columns + token];
        accepted += u32(stays && accepted == draft);
    }
    // What is likelier than the draft has it; of all tokens where all drafts stay, or where roundings leave none that is.
    let base = accepted * params.columns;
    let place = params.place + accepted;
    var largest = vec2(0.0);
    var mine = vec2(0u);
    for (var column = lane.index; column < params.columns; column += WORKGROUP) {
        let weight = likely[base + column];
        if weight > 0.0 {
            let number = random_exponential(vec4(column, place, params.seed_low, params.seed_high));
            var more = weight;
            if accepted < params.drafts {
                more = max(weight - draft_chance(accepted, column), 0.0);
            }
            let score = vec2(more, weight) / number;
            let better = score > largest;
            mine = select(mine, vec2(column), better);
            largest = select(largest, score, better);
        }
    }
    let most = vec2(reduce_max(largest.x, lane), reduce_max(largest.y, lane));
    // The least column is the largest negative one; f32 holds it exactly below 2^24.
    let place_of = vec2(
        reduce_max(select(-3.0e38, -f32(mine.x), largest.x == most.x), lane),
        reduce_max(select(-3.0e38, -f32(mine.y), largest.y == most.y), lane),
    );
    if lane.index == 0u {
        result[0] = accepted;
        result[1] = u32(-select(place_of.y, place_of.x, most.x > 0.0));
    }
}
