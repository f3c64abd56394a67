// A packed matrix as bit planes for lookups: a lane of a subgroup owns a row, and finds 128 columns of a plane in 16 bytes
// beside its neighbour's. One invocation: those 128 columns of one row, all planes.
@group(0) @binding(0) var<storage, read> codes: array<code_t>;             // (rows, code_words)
@group(0) @binding(1) var<storage, read_write> planes: array<vec4<u32>>;   // (rows / 32, units, BITS, 32)
#import params
override WORKGROUP: u32;
#import code_bytes

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let units = (params.columns + 127u) / 128u;
    let tile = index / (32u * units);
    let unit = index / 32u % units;
    let row = tile * 32u + index % 32u;
    if tile * 32u >= params.rows {
        return;
    }
    var words: array<vec4<u32>, BITS>;
    for (var quad = 0u; quad < 32u; quad++) {
        let column = unit * 128u + quad * 4u;
        if row < params.rows && column < params.columns {
            let four = code_bytes(row, column);
            for (var plane = 0u; plane < BITS; plane++) {
                words[plane][quad / 8u] |= ((four >> plane) & 0x01010101u) << (quad % 8u);
            }
        }
    }
    for (var plane = 0u; plane < BITS; plane++) {
        planes[((tile * units + unit) * BITS + plane) * 32u + index % 32u] = words[plane];
    }
}
