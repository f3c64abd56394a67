// The repetition penalty, in place: logits of tokens that a row has read shrink towards what is unlikely. One invocation: 32 tokens of a
// row, which nobody else reads or writes.
@group(0) @binding(0) var<storage, read> read_now: array<u32>;         // (rows)
@group(0) @binding(1) var<storage, read_write> seen: array<u32>;       // (rows, words) a bit for each token
@group(0) @binding(2) var<storage, read> penalties: array<vec2<f32>>;  // (rows) a penalty and 1 over it
@group(0) @binding(3) var<storage, read_write> result: array<f32>;     // (rows, columns) logits
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index >= params.rows * params.words {
        return;
    }
    let row = index / params.words;
    let word = index % params.words;
    var bits = seen[index];
    let token = read_now[row];
    if token / 32u == word {
        bits |= 1u << (token % 32u);
        seen[index] = bits;
    }
    let penalty = penalties[row];
    let end = (row + 1u) * params.columns;
    while bits != 0u {
        let place = row * params.columns + word * 32u + firstTrailingBit(bits);
        bits &= bits - 1u;
        if place < end {
            let logit = result[place];
            result[place] = logit * select(penalty.y, penalty.x, logit < 0.0);
        }
    }
}
