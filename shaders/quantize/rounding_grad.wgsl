// Gradients of learned rounding and of its grid's clipping from that of the weights. One invocation: a share of a group's
// columns; the shares of a group are added in a fixed order.
@group(0) @binding(0) var<storage, read> weight: array<f32>;               // (rows, columns)
@group(0) @binding(1) var<storage, read> shares: array<f32>;               // (rows, columns)
@group(0) @binding(2) var<storage, read> base: array<vec2<f32>>;           // (rows, groups) scales and seconds before
@group(0) @binding(3) var<storage, read> scales: array<f32>;               // (rows, groups)
@group(0) @binding(4) var<storage, read> offsets: array<f32>;              // (rows, groups), if MODE is 2
@group(0) @binding(5) var<storage, read_write> gradient: array<f32>;       // (rows, columns)
@group(0) @binding(6) var<storage, read_write> result: array<vec2<f32>>;   // (rows, groups)
#import params
override WORKGROUP: u32;

var<workgroup> parts: array<vec2<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = ((group.y * groups.x + group.x) * WORKGROUP + lane) / params.lanes;
    let share = lane % params.lanes;
    let row = index / params.groups;
    var sums = vec2(0.0);
    if row < params.rows {
        let scale = scales[index];
        // Codes stand for scale * (code - zero) + offset.
        var zero = params.zero;
        var offset = 0.0;
        if params.mode == 1u {
            zero = base[index].y;
        }
        if params.mode == 2u {
            offset = offsets[index];
        }
        let start = (index - row * params.groups) * params.group_columns;
        let end = min(start + params.group_columns, params.columns);
        for (var column = start + share; column < end; column += params.lanes) {
            let place = row * params.columns + column;
            let slope = gradient[place];
            if scale == 0.0 {
                // Its weights are all the offset.
                gradient[place] = 0.0;
                sums.y += slope;
                continue;
            }
            let steps = (weight[place] - offset) / scale;
            let nearest = round(steps + zero + shares[place]);
            let within = nearest >= 0.0 && nearest <= params.last;
            let level = clamp(nearest, 0.0, params.last) - zero;
            gradient[place] = select(0.0, slope * scale, within);
            sums += slope * select(vec2(level, 1.0), vec2(level - steps, 0.0), within);
        }
    }
    parts[lane] = sums;
    for (var step = params.lanes / 2u; step > 0u; step = step / 2u) {
        workgroupBarrier();
        if share < step {
            parts[lane] += parts[lane + step];
        }
    }
    if share == 0u && row < params.rows {
        let grid = base[index];
        let total = parts[lane];
        if params.mode == 2u {
            let low = grid.y / params.last;
            result[index] = vec2(total.x * (grid.x + low), total.y * grid.y - total.x * low);
        } else {
            result[index] = vec2(total.x * grid.x, 0.0);
        }
    }
}
