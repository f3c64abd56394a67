// One score for each block of channels: those of a member first, then the members', by one reduction. One invocation: one
// block.
@group(0) @binding(0) var<storage, read> scores: array<f32>;           // (members, count * block)
@group(0) @binding(1) var<storage, read_write> result: array<f32>;     // (count)
#import params
override WORKGROUP: u32;
#import is_nan

// REDUCE: 0 sum, 1 mean, 2 max, 3 product, 4 first, 5 last.
fn joined(known: f32, next: f32) -> f32 {
    switch REDUCE {
        case 2u: {
            // A device's own maximum may pass over a NaN.
            return select(known, next, !is_nan(known) && (is_nan(next) || next > known));
        }
        case 3u: {
            return known * next;
        }
        case 4u: {
            return known;
        }
        case 5u: {
            return next;
        }
        default: {
            return known + next;
        }
    }
}

// The end of a reduction of so many.
fn finished(value: f32, count: u32) -> f32 {
    if REDUCE == 1u {
        return value / f32(count);
    }
    return value;
}

fn member_score(first: u32) -> f32 {
    var value = scores[first];
    for (var channel = 1u; channel < params.block; channel++) {
        value = joined(value, scores[first + channel]);
    }
    return finished(value, params.block);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index < params.count {
        let first = index * params.block;
        let width = params.count * params.block;
        var value = member_score(first);
        for (var member = 1u; member < params.members; member++) {
            value = joined(value, member_score(member * width + first));
        }
        result[index] = finished(value, params.members);
    }
}
