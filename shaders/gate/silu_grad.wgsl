// Gradients of silu(gate) * up at the gate and at the other factor. One invocation: one element.
struct Params {
    count: u32,
}
@group(0) @binding(0) var<storage, read> gate: array<act>;             // (count)
@group(0) @binding(1) var<storage, read> up: array<act>;               // (count)
@group(0) @binding(2) var<storage, read> grad: array<f32>;             // (count)
@group(0) @binding(3) var<storage, read_write> gate_grad: array<act>;  // (count)
@group(0) @binding(4) var<storage, read_write> up_grad: array<act>;    // (count)
@group(1) @binding(0) var<uniform> params: Params;
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index < params.count {
        let g = f32(gate[index]);
        let d = grad[index];
        let sigmoid = 1.0 / (1.0 + exp(-g));
        gate_grad[index] = act(d * f32(up[index]) * (sigmoid * (1.0 + g * (1.0 - sigmoid))));
        up_grad[index] = act(d * (g * sigmoid));
    }
}
