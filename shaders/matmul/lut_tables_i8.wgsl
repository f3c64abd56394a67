// Tables of bytes for products by lookup (T-MAC, arXiv 2407.00088, section 3.2): of integer activations of two bytes, 64
// columns a scale, the sixteen signed sums of every four columns, all of a scale's divided by the least power of two for which
// they fit a byte. Integers, rounded to the nearest, halves up: every device agrees. One invocation: 64 columns of one token.
@group(0) @binding(0) var<storage, read> x_codes: array<vec4<u32>>;          // (tokens, 8, spans): two bytes, 64 columns
@group(0) @binding(1) var<storage, read> x_scales: array<vec2<f32>>;         // (tokens, spans): scale, scale * sum
@group(0) @binding(2) var<storage, read_write> tables: array<vec4<u32>>;     // (tokens, 2 units, 16): 16 entries
@group(0) @binding(3) var<storage, read_write> sums: array<vec4<f32>>;       // (tokens, 2 units): scale, sums of two blocks
#import params
override WORKGROUP: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let spans = (params.columns + 63u) / 64u;
    // Units are 128 columns: where they are an odd number of spans, there is one of zeros more.
    let stored = (params.columns + 127u) / 128u * 2u;
    let token = index / stored;
    if token >= params.tokens {
        return;
    }
    let span = index - token * stored;
    // Columns of a table stand 4 apart in half a block: those of a byte of four words (matmul/lut_tables).
    var quads: array<vec4<i32>, 16>;
    var totals = vec2(0);
    var largest = 0;
    if span < spans {
        for (var piece = 0u; piece < 4u; piece++) {
            let low = x_codes[(token * 8u + piece) * spans + span];
            let high = x_codes[(token * 8u + 4u + piece) * spans + span];
            for (var place = 0u; place < 4u; place++) {
                let shift = vec4(24u - 8u * place);
                let low_bytes = (bitcast<vec4<i32>>(low) << shift) >> vec4(24u);
                let high_bytes = (bitcast<vec4<i32>>(high) << shift) >> vec4(24u);
                let quad = low_bytes + 256 * high_bytes;
                // Nibble `n` of a block's word: half n % 2, place n / 2.
                quads[8u * (piece / 2u) + 2u * place + piece % 2u] = quad;
                let magnitude = abs(quad);
                largest = max(largest, magnitude.x + magnitude.y + magnitude.z + magnitude.w);
                totals[piece / 2u] += quad.x + quad.y + quad.z + quad.w;
            }
        }
    }
    var shift = 0u;
    while ((largest + ((1 << shift) >> 1u)) >> shift) > 127 {
        shift++;
    }
    let half = (1 << shift) >> 1u;
    for (var n = 0u; n < 16u; n++) {
        let a = quads[n];
        let low = vec4(-a.x - a.y, a.x - a.y, a.y - a.x, a.x + a.y);
        let high = vec4(-a.z - a.w, a.z - a.w, a.w - a.z, a.z + a.w);
        var words: vec4<u32>;
        for (var i = 0u; i < 4u; i++) {
            words[i] = pack4xI8((low + high[i] + vec4(half)) >> vec4(shift));
        }
        tables[index * 16u + n] = words;
    }
    var scale = 0.0;
    if span < spans {
        scale = x_scales[token * spans + span].x;
    }
    sums[index] = vec4(scale * f32(1u << shift), scale * f32(totals.x), scale * f32(totals.y), 0.0);
}
