// Some rows and columns of a matrix, as a smaller one. One invocation: one word.
@group(0) @binding(0) var<storage, read> source: array<u32>;           // (rows, source_width)
@group(0) @binding(1) var<storage, read> kept_rows: array<u32>;        // (rows of the result) rows of the source
@group(0) @binding(2) var<storage, read> kept_columns: array<u32>;     // (width) columns of the source
@group(0) @binding(3) var<storage, read_write> result: array<u32>;     // (rows, width)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let down = index / params.width;
    if down < params.count {
        let column = index - down * params.width;
        let row = params.first + down;
        let origin = kept_rows[row] * params.source_width + kept_columns[column];
        result[row * params.width + column] = source[origin];
    }
}
