// One step of AdamW with moments of 8 bits: codes of a table, times the largest magnitude of their block of 256. One
// workgroup: some blocks, one after another; one invocation: four elements of each.
@group(0) @binding(0) var<storage, read> gradient: array<vec4<f32>>;         // (count)
@group(0) @binding(1) var<storage, read> state: array<f32>;                  // (4) norm, factor, finite, 0
@group(0) @binding(2) var<storage, read> levels: array<f32>;                 // (2, 256) of the mean, of the squares
@group(0) @binding(3) var<storage, read_write> weight: array<vec4<f32>>;     // (count)
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;            // (blocks, 2, 64) four codes a word
@group(0) @binding(5) var<storage, read_write> absmax: array<vec2<f32>>;     // (blocks)
@group(0) @binding(6) var<storage, read_write> copied: array<vec4<out_t>>;   // (count) the weight in f16, if COPY
#import params
override WORKGROUP: u32;
#import reduce
#import adamw_step

const BLOCK: u32 = 256u;
const BLOCKS: u32 = 8u;
// The smallest normal number: what is below may be taken for zero, and is no divisor.
const LEAST: f32 = 1.1754944e-38;
var<workgroup> tables: array<f32, 512>;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    if state[2] == 0.0 {
        return;
    }
    for (var entry = lane.index; entry < 512u; entry += WORKGROUP) {
        tables[entry] = levels[entry];
    }
    workgroupBarrier();
    let start = (group.y * groups.x + group.x) * BLOCKS;
    for (var block = start; block < start + BLOCKS; block++) {
        if block * BLOCK >= params.count {
            break;
        }
        let word = block * 2u * 64u + lane.index;
        let index = block * 64u + lane.index;
        let inside = vec4(index * 4u) + vec4(0u, 1u, 2u, 3u) < vec4(params.count);
        var step = Stepped();
        if inside.x {
            let largest = absmax[block];
            step = adamw_step(
                gradient[index] * state[1],
                weight[index],
                largest.x * coded(codes[word], 0u),
                largest.y * coded(codes[word + 64u], 256u),
            );
            step.first = select(vec4(0.0), step.first, inside);
            step.second = select(vec4(0.0), step.second, inside);
        }
        let magnitudes = abs(step.first);
        let first = reduce_max(max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w)), lane);
        let squares = step.second;
        let second = reduce_max(max(max(squares.x, squares.y), max(squares.z, squares.w)), lane);
        codes[word] = nearest_codes(step.first, first, 0u);
        codes[word + 64u] = nearest_codes(step.second, second, 256u);
        if lane.index == 0u {
            absmax[block] = vec2(first, second);
        }
        if inside.w {
            weight[index] = step.weight;
            if COPY == 1u {
                copied[index] = vec4<out_t>(step.weight);
            }
        } else {
            // The last vector is no whole one: what is behind its elements stays as it is.
#for C in 3
            if inside[{C}] {
                weight[index][{C}] = step.weight[{C}];
                if COPY == 1u {
                    copied[index][{C}] = out_t(step.weight[{C}]);
                }
            }
#end
        }
    }
}

// The levels that four codes stand for, of the table that begins at `base`.
fn coded(word: u32, base: u32) -> vec4<f32> {
    let code = unpack4xU8(word) + vec4(base);
    return vec4(tables[code.x], tables[code.y], tables[code.z], tables[code.w]);
}

fn nearest_codes(values: vec4<f32>, largest: f32, base: u32) -> u32 {
    let shares = select(values / largest, vec4(0.0), largest < LEAST);
    return pack4xU8(vec4(
        nearest_code(shares.x, base),
        nearest_code(shares.y, base),
        nearest_code(shares.z, base),
        nearest_code(shares.w, base),
    ));
}

// The code of the nearest level, of two as near the lower one.
fn nearest_code(share: f32, base: u32) -> u32 {
    // The last level that is not above.
    var code = 0u;
    for (var reach = 128u; reach > 0u; reach = reach / 2u) {
        if tables[base + code + reach] <= share {
            code += reach;
        }
    }
    let next = min(code + 1u, 255u);
    let middle = 0.5 * (tables[base + code] + tables[base + next]);
    return select(code, next, share > middle);
}
