// What attention's backward kernels need of each token and head: the log-sum-exp of its scores, and the dot product of its
// result and that result's gradient. One workgroup: one head of OWNERS tokens of a sequence, and all keys they see, STREAMED
// at a time through workgroup memory; one invocation: PER of the tokens, each with one of those keys.
struct Params {
    tiles: u32,
    tile_start: u32,
    tokens_per_sequence: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    scale: f32,
}
@group(0) @binding(0) var<storage, read> query: array<act>;                      // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<act>;                        // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> result: array<act>;                     // (all tokens, heads, head_dim)
@group(0) @binding(3) var<storage, read> grad: array<act>;                       // (all tokens, heads, head_dim)
@group(0) @binding(4) var<storage, read_write> statistics: array<vec2<f32>>;     // (all tokens, heads) log-sum-exp, product
@group(1) @binding(0) var<uniform> params: Params;
#import is_nan

// Rows of a tile are a vector longer than they need be, so that the same column of several rows falls into different banks.
const PITCH: u32 = DIM / 4u + 1u;
const ROWS: u32 = OWNERS / PER;
const SHARE: u32 = 64u / OWNERS;
const NOTHING: f32 = -3.0e38;
var<workgroup> queries: array<vec4<f32>, OWNERS * PITCH>;
var<workgroup> keys: array<vec4<f32>, STREAMED * PITCH>;
// A maximum and the sum of the exponentials below it, of each token and invocation.
var<workgroup> parts: array<vec2<f32>, OWNERS * STREAMED>;
var<workgroup> products: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    if index >= params.tiles * params.heads {
        return;
    }
    let in_sequence = (params.tokens_per_sequence + OWNERS - 1u) / OWNERS;
    let tile = params.tile_start + index / params.heads;
    let head = index % params.heads;
    let sequence = tile / in_sequence;
    let first = (tile - sequence * in_sequence) * OWNERS;
    let count = min(OWNERS, params.tokens_per_sequence - first);
    let fours = (params.head_dim + 3u) / 4u;
    let pitch = params.kv_heads * params.head_dim;
    let cache = sequence * params.capacity * pitch + head / (params.heads / params.kv_heads) * params.head_dim;
    let base = (sequence * params.tokens_per_sequence + first) * params.heads + head;
    for (var place = lane; place < count * fours; place += 64u) {
        let row = place / fours;
        let column = 4u * (place - row * fours);
        let at = (base + row * params.heads) * params.head_dim + column;
        var four = vec4(0.0);
#for E in 4
        if column + {E}u < params.head_dim {
            four[{E}] = f32(query[at + {E}u]) * params.scale;
        }
#end
        queries[row * PITCH + column / 4u] = four;
    }
    // This invocation's tokens are ROWS apart.
    let low = lane / STREAMED;
    let mine = lane % STREAMED;
    var maxima: array<f32, PER>;
    var totals: array<f32, PER>;
    for (var o = 0u; o < PER; o++) {
        maxima[o] = NOTHING;
    }
    let seen = first + count;
    for (var start = 0u; start < seen; start += STREAMED) {
        let present = min(STREAMED, seen - start);
        for (var place = lane; place < present * fours; place += 64u) {
            let row = place / fours;
            let column = 4u * (place - row * fours);
            let at = cache + (start + row) * pitch + column;
            var four = vec4(0.0);
#for E in 4
            if column + {E}u < params.head_dim {
                four[{E}] = f32(key[at + {E}u]);
            }
#end
            keys[row * PITCH + column / 4u] = four;
        }
        workgroupBarrier();
        if low < ROWS && mine < present {
            var scores: array<f32, PER>;
            for (var four = 0u; four < fours; four++) {
                let keyed = keys[mine * PITCH + four];
                for (var o = 0u; o < PER; o++) {
                    scores[o] += dot(queries[(low + o * ROWS) * PITCH + four], keyed);
                }
            }
            for (var o = 0u; o < PER; o++) {
                let score = scores[o];
                if start + mine <= first + low + o * ROWS {
                    if score > maxima[o] {
                        totals[o] = totals[o] * exp(maxima[o] - score) + 1.0;
                        maxima[o] = score;
                    } else {
                        // A device may take exp of NaN for anything, and the comparison passed it over.
                        totals[o] += select(exp(score - maxima[o]), score, is_nan(score));
                    }
                }
            }
        }
        // Here, not where the next begins: NVIDIA's OpenGL loses a barrier that opens a loop.
        workgroupBarrier();
    }
    if low < ROWS {
        for (var o = 0u; o < PER; o++) {
            parts[(low + o * ROWS) * STREAMED + mine] = vec2(maxima[o], totals[o]);
        }
    }
    let owner = lane / SHARE;
    var product = 0.0;
    if owner < count {
        let at = (base + owner * params.heads) * params.head_dim;
        for (var column = lane % SHARE; column < params.head_dim; column += SHARE) {
            product += f32(result[at + column]) * f32(grad[at + column]);
        }
    }
    products[lane] = product;
    workgroupBarrier();
    if lane < count {
        var maximum = NOTHING;
        for (var part = 0u; part < STREAMED; part++) {
            maximum = max(maximum, parts[lane * STREAMED + part].x);
        }
        var total = 0.0;
        for (var part = 0u; part < STREAMED; part++) {
            let its = parts[lane * STREAMED + part];
            total += its.y * exp(its.x - maximum);
        }
        var delta = 0.0;
        for (var part = 0u; part < SHARE; part++) {
            delta += products[lane * SHARE + part];
        }
        statistics[base + lane * params.heads] = vec2(select(maximum + log(total), total, is_nan(total)), delta);
    }
}
