// Gradients of activation(gate) * up at the gate and at the other factor. One invocation: four elements.
@group(0) @binding(0) var<storage, read> gate: array<vec4<act>>;             // (count)
@group(0) @binding(1) var<storage, read> up: array<vec4<act>>;               // (count)
@group(0) @binding(2) var<storage, read> grad: array<vec4<f32>>;             // (count)
@group(0) @binding(3) var<storage, read_write> gate_grad: array<vec4<out_t>>;  // (count)
@group(0) @binding(4) var<storage, read_write> up_grad: array<vec4<out_t>>;    // (count)
#import params
override WORKGROUP: u32;
#import activation

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count {
        return;
    }
    let g = vec4<f32>(gate[index]);
    let d = grad[index];
    var activations = vec4(0.0);
    var slopes = vec4(0.0);
#for C in 4
    let both{C} = activated_slope(g[{C}], params.activation);
    activations[{C}] = both{C}.x;
    slopes[{C}] = both{C}.y;
#end
    let of_gate = vec4<out_t>(d * vec4<f32>(up[index]) * slopes);
    let of_up = vec4<out_t>(d * activations);
    // The last vector may be no whole one: what is behind its elements stays as it is.
    if index * 4u + 3u < params.count {
        gate_grad[index] = of_gate;
        up_grad[index] = of_up;
    } else {
#for C in 3
        if index * 4u + {C}u < params.count {
            gate_grad[index][{C}] = of_gate[{C}];
            up_grad[index][{C}] = of_up[{C}];
        }
#end
    }
}
