// Appends new tokens' rows to a cache of another type, rounded, behind what each sequence holds already. One workgroup: 64
// columns of a token. All devices give the same bits.
@group(0) @binding(0) var<storage, read> x: array<act>;                // (tokens, width)
@group(0) @binding(1) var<storage, read> past: array<u32>;             // (sequences) tokens seen before
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;      // (sequences, capacity, code_words)
@group(0) @binding(3) var<storage, read_write> scales: array<u32>;     // (sequences, capacity, scale_words)
#import params
override WORKGROUP: u32;
#import rounded
var<workgroup> held: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    let units = (params.width + WORKGROUP - 1u) / WORKGROUP;
    let token = index / units;
    if token >= params.tokens {
        return;
    }
    let unit = index - token * units;
    let column = unit * WORKGROUP + lane;
    let sequence = token / params.tokens_per_sequence;
    let row = sequence * params.capacity + past[sequence] + token - sequence * params.tokens_per_sequence;
    var value = 0.0;
    if column < params.width {
        value = f32(x[token * params.width + column]);
    }
    let code = rounded_code(value, lane, row, column);
    held[lane] = select(0u, code, column < params.width);
    workgroupBarrier();
    // The words of a unit: neighbouring codes from the lowest bits up, but of 4 bits by bytes (src/tensor/block.rs).
    let place = unit * WORKGROUP * BITS / 32u + lane;
    if lane < WORKGROUP * BITS / 32u && place < params.code_words {
        var word = 0u;
        for (var i = 0u; i < 32u / BITS; i++) {
            let shift = select(BITS * i, 8u * (i & 3u) + 4u * (i >> 2u), BITS == 4u);
            word |= held[lane * (32u / BITS) + i] << shift;
        }
        codes[row * params.code_words + place] = word;
    }
}
