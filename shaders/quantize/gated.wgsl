// A gated unit, activation(gate) * up, and rounding to integers in one pass, for integer dot products. One workgroup: as many
// blocks of 32 SPAN columns as it has lanes for; a lane computes four columns, and of each block one rounds them all.
@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>;               // (all tokens, columns); columns in fours
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>;                 // likewise
@group(0) @binding(2) var<storage, read_write> x_codes: array<vec4<u32>>;      // (tokens, 2 SPAN PLANES, blocks)
@group(0) @binding(3) var<storage, read_write> x_scales: array<vec2<f32>>;     // (tokens, blocks)
#import params
override WORKGROUP: u32;
#import activation
#import integer_block

// Vectors of four columns of a block.
const FOURS: u32 = 8u * SPAN;
var<workgroup> gated: array<vec4<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let fours = params.columns / 4u;
    let blocks = (fours + FOURS - 1u) / FOURS;
    let at_once = WORKGROUP / FOURS;
    let first = (group.y * groups.x + group.x) * at_once;
    let place = first + lane / FOURS;
    let four = place % blocks * FOURS + lane % FOURS;
    var value = vec4(0.0);
    if place < params.tokens * blocks && four < fours {
        let at = (params.token_start + place / blocks) * fours + four;
        let g = gate[at];
        var activations = vec4(0.0);
#for C in 4
        activations[{C}] = activated(g[{C}], params.activation);
#end
        value = activations * up[at];
    }
    gated[lane] = value;
    workgroupBarrier();
    let own = first + lane;
    if lane < at_once && own < params.tokens * blocks {
        var values: array<vec4<f32>, FOURS>;
        for (var i = 0u; i < FOURS; i++) {
            values[i] = gated[lane * FOURS + i];
        }
        x_scales[own] = store_integers(values, own / blocks, own % blocks, blocks);
    }
}
