// The gated activation of a Llama feed-forward: silu(gate) * up. One invocation: four elements.
struct Params {
    count: u32,
}
@group(0) @binding(0) var<storage, read> gate: array<vec4<act>>;             // (count)
@group(0) @binding(1) var<storage, read> up: array<vec4<act>>;               // (count)
@group(0) @binding(2) var<storage, read_write> result: array<vec4<out_t>>;   // (count)
@group(1) @binding(0) var<uniform> params: Params;
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count {
        return;
    }
    let g = vec4<f32>(gate[index]);
    let value = vec4<out_t>(g / (1.0 + exp(-g)) * vec4<f32>(up[index]));
#import store_four
}
