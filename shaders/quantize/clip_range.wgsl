// Scales and offsets of grids whose ranges are clipped. One invocation: one group.
@group(0) @binding(0) var<storage, read> clips: array<vec2<f32>>;          // (groups) factors of the highest and the lowest
@group(0) @binding(1) var<storage, read> base: array<vec2<f32>>;           // (groups) scales and seconds before
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;         // (groups)
@group(0) @binding(3) var<storage, read_write> offsets: array<f32>;        // (groups), if grids have them
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index >= params.groups {
        return;
    }
    let clip = clips[index];
    let grid = base[index];
    if params.by_offset == 0u {
        scales[index] = clip.x * grid.x;
        return;
    }
    scales[index] = clip.x * grid.x + (clip.x - clip.y) * grid.y / params.last;
    offsets[index] = clip.y * grid.y;
}
