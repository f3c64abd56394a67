// Gradient of a packed matrix's scales, and of its offsets, from that of its weights: sums over each group of the gradient
// times what a scale, or an offset, is multiplied by. One invocation: a share of a group's columns, in fours; the shares of
// a group are added in a fixed order.
@group(0) @binding(0) var<storage, read> codes: array<code_t>;             // (rows, code_words)
@group(0) @binding(1) var<storage, read> scales: array<u32>;               // (rows, scale_words)
@group(0) @binding(2) var<storage, read> gradient: array<f32>;             // (all rows, columns)
@group(0) @binding(3) var<storage, read_write> result: array<f32>;         // (all rows, groups)
@group(0) @binding(4) var<storage, read_write> offsets: array<f32>;        // (all rows, groups), of types with offsets
#import params
override WORKGROUP: u32;
#import weight
#import prepare

var<workgroup> parts: array<vec2<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    prepare_levels(lane, WORKGROUP);
    let index = ((group.y * groups.x + group.x) * WORKGROUP + lane) / params.shares;
    let share = lane % params.shares;
    let row = index / params.groups;
    let base = (params.row_start + row) * params.columns;
    var sums = vec2(0.0);
    if row < params.rows {
        let start = (index - row * params.groups) * params.group_columns;
        let end = min(start + params.group_columns, params.columns);
        for (var column = start + 4u * share; column < end; column += 4u * params.shares) {
            var slopes = vec4(0.0);
            for (var i = 0u; i < 4u; i++) {
                if column + i < end {
                    slopes[i] = gradient[base + column + i];
                }
            }
            let units = quad_values(code_bytes(row, column), unit_grid(row, column));
            sums += vec2(dot(slopes, units), (slopes.x + slopes.y) + (slopes.z + slopes.w));
        }
    }
    parts[lane] = sums;
    for (var step = params.shares / 2u; step > 0u; step = step / 2u) {
        workgroupBarrier();
        if share < step {
            parts[lane] += parts[lane + step];
        }
    }
    if share == 0u && row < params.rows {
        let place = params.row_start * params.groups + index;
        result[place] = parts[lane].x;
        if SCALE == 3u {
            offsets[place] = parts[lane].y;
        }
    }
}

// The grid of a group whose scale is 1, and whose offset is 0: on it codes are what the scale is multiplied by.
fn unit_grid(row: u32, column: u32) -> vec2<f32> {
    if SCALE == 1u {
        return vec2(1.0, f32(1u << (BITS - 1u)));
    }
    if SCALE == 2u {
        return vec2(1.0, group_grid(row, column).y);
    }
    if SCALE == 6u {
        return vec2(bitcast<f32>(scales[row * params.scale_words]), 0.0);
    }
    return vec2(1.0, 0.0);
}
