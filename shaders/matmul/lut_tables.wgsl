// Tables for products by lookup (T-MAC, arXiv 2407.00088): for every four columns the sixteen sums of their activations,
// each added or taken away. One invocation: one table. Entries are a quarter of the sums, so that f16 holds them.
@group(0) @binding(0) var<storage, read> x: array<vec4<act>>;                // (all tokens, columns, padded to fours)
@group(0) @binding(1) var<storage, read_write> tables: array<vec4<out_t>>;   // (tokens, units, 32, 4): 16 entries
@group(0) @binding(2) var<storage, read_write> halves: array<f32>;           // (tokens, units, 8): sums of 16 columns
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let all = (params.columns + 127u) / 128u * 32u;
    let token = index / all;
    if token >= params.tokens {
        return;
    }
    let place = index - token * all;
    // A nibble of a word of a plane is four columns, 4 apart in half a block: bits of one byte (copy/planes).
    let nibble = place & 7u;
    let first = place / 8u * 32u + (nibble & 1u) * 16u;
    let component = nibble >> 1u;
    let line = (params.token_start + token) * ((params.columns + 3u) / 4u) + first / 4u;
    var quads: array<vec4<f32>, 4>;
    for (var i = 0u; i < 4u; i++) {
        if first + 4u * i < params.columns {
            quads[i] = vec4<f32>(x[line + i]);
        }
    }
    if component == 0u {
        let sums = quads[0] + quads[1] + quads[2] + quads[3];
        halves[(token * all + place) / 8u * 2u + nibble] = (sums.x + sums.y) + (sums.z + sums.w);
    }
    let a = 0.25 * vec4(quads[0][component], quads[1][component], quads[2][component], quads[3][component]);
    let low = vec4(-a.x - a.y, a.x - a.y, a.y - a.x, a.x + a.y);
    let high = vec4(-a.z - a.w, a.z - a.w, a.w - a.z, a.z + a.w);
    for (var i = 0u; i < 4u; i++) {
        tables[index * 4u + i] = vec4<out_t>(low + high[i]);
    }
}
