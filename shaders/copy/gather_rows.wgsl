// Rows of one tensor to rows of another; the others stay as they are. One invocation: one word.
@group(0) @binding(0) var<storage, read> source: array<u32>;           // (rows, width)
@group(0) @binding(1) var<storage, read> origin: array<u32>;           // (count) rows of the source
@group(0) @binding(2) var<storage, read> target_row: array<u32>;       // (count) rows of the result
@group(0) @binding(3) var<storage, read_write> result: array<u32>;     // (rows, width)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let row = index / params.width;
    if row < params.count {
        let column = index - row * params.width;
        let pair = params.first + row;
        result[target_row[pair] * params.width + column] = source[origin[pair] * params.width + column];
    }
}
