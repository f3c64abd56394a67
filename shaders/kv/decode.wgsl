// The first rows of each sequence's cache as plain numbers, for kernels that read those. One invocation: eight columns.
@group(0) @binding(0) var<storage, read> codes: array<eight_t>;            // (sequences, capacity, code_words)
@group(0) @binding(1) var<storage, read> scales: array<u32>;               // (sequences, capacity, scale_words), or one unused word
@group(0) @binding(2) var<storage, read_write> result: array<vec4<out_t>>; // (sequences, length, width)
#import params
override WORKGROUP: u32;
#import cached
#import cached_grid

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let eights = params.width / 8u;
    let line = index / eights;
    let sequence = line / params.length;
    if sequence >= params.sequences {
        return;
    }
    let row = sequence * params.capacity + line - sequence * params.length;
    let eight = index - line * eights;
    var grid = vec2(0.0);
    if SCALE > 0u {
        grid = grid_of(scales[grid_place(row, eight * 8u)], eight * 8u);
    }
    // Words of a row over those of eight columns.
    let pitch = params.code_words * 4u / BITS;
    let values = eight_values(codes[row * pitch + eight], grid);
    result[2u * index] = vec4<out_t>(values[0]);
    result[2u * index + 1u] = vec4<out_t>(values[1]);
}
