// One step of AdamW: the moments of the gradient, and the weight moved by their ratio. One invocation: four elements.
@group(0) @binding(0) var<storage, read> gradient: array<vec4<f32>>;         // (count)
@group(0) @binding(1) var<storage, read> state: array<f32>;                  // (4) norm, factor, finite, 0
@group(0) @binding(2) var<storage, read_write> weight: array<vec4<f32>>;     // (count)
@group(0) @binding(3) var<storage, read_write> first: array<vec4<f32>>;      // (count) mean of the gradient
@group(0) @binding(4) var<storage, read_write> second: array<vec4<f32>>;     // (count) mean of its squares
@group(0) @binding(5) var<storage, read_write> copied: array<vec4<out_t>>;   // (count) the weight in f16, if COPY
#import params
override WORKGROUP: u32;
#import adamw_step

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count || state[2] == 0.0 {
        return;
    }
    let step = adamw_step(gradient[index] * state[1], weight[index], first[index], second[index]);
    if index * 4u + 3u < params.count {
        weight[index] = step.weight;
        first[index] = step.first;
        second[index] = step.second;
        if COPY == 1u {
            copied[index] = vec4<out_t>(step.weight);
        }
        return;
    }
    // The last vector may be no whole one: what is behind its elements stays as it is.
#for C in 3
    if index * 4u + {C}u < params.count {
        weight[index][{C}] = step.weight[{C}];
        first[index][{C}] = step.first[{C}];
        second[index][{C}] = step.second[{C}];
        if COPY == 1u {
            copied[index][{C}] = out_t(step.weight[{C}]);
        }
    }
#end
}
