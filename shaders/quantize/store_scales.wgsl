// Trained scales in f32 back into a packed matrix's words, each rounded once, in integers. One invocation: one word.
@group(0) @binding(0) var<storage, read> values: array<f32>;               // (all rows, groups)
@group(0) @binding(1) var<storage, read> offsets: array<f32>;              // (all rows, groups), if KIND is 2
@group(0) @binding(2) var<storage, read_write> scales: array<u32>;         // (rows, scale_words)
#import params
override WORKGROUP: u32;
#import f16_bits
#import e4m3_bits

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let row = index / params.scale_words;
    if row >= params.rows {
        return;
    }
    let place = index - row * params.scale_words;
    let base = (params.row_start + row) * params.groups;
    var word = 0u;
    switch KIND {
        // Two scales in f16.
        case 0u: {
            for (var i = 0u; i < 2u; i++) {
                if 2u * place + i < params.groups {
                    word |= f16_bits(values[base + 2u * place + i]) << (16u * i);
                }
            }
        }
        // One, and a zero point that stays.
        case 1u: {
            word = f16_bits(values[base + place]) | (scales[index] & 0xffff0000u);
        }
        // One, and an offset.
        case 2u: {
            word = f16_bits(values[base + place]) | f16_bits(offsets[base + place]) << 16u;
        }
        // Four in E4M3, behind the row's f32, which stays.
        default: {
            if place == 0u {
                return;
            }
            for (var i = 0u; i < 4u; i++) {
                let column = 4u * (place - 1u) + i;
                if column < params.groups {
                    word |= e4m3_bits(values[base + column]) << (8u * i);
                }
            }
        }
    }
    scales[index] = word;
}
