// The parts that the query heads of a group have of a key-value head's gradient, added up in their order. One invocation: four
// columns of one head of a row.
@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>;          // (rows, heads, head_dim)
@group(0) @binding(1) var<storage, read_write> result: array<vec4<f32>>;   // (rows, kv_heads, head_dim)
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if index * 4u >= params.count {
        return;
    }
    let fours = params.head_dim / 4u;
    let first = index / fours * params.group * fours + index % fours;
    var sum = parts[first];
    for (var head = 1u; head < params.group; head++) {
        sum += parts[first + head * fours];
    }
    result[index] = sum;
}
