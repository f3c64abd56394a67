// The gradient of causal attention's queries. One workgroup: one head of OWNERS tokens of a sequence, and all keys they see,
// STREAMED at a time through workgroup memory; one invocation: PER of the tokens with one of those keys for the scores, then
// a share of one token's columns for the sums.
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
@group(0) @binding(0) var<storage, read> query: array<act>;                // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<act>;                  // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<act>;                // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> grad: array<act>;                 // (all tokens, heads, head_dim)
@group(0) @binding(4) var<storage, read> statistics: array<vec2<f32>>;     // (all tokens, heads) log-sum-exp, product
@group(0) @binding(5) var<storage, read_write> result: array<act>;         // (all tokens, heads, head_dim)
@group(1) @binding(0) var<uniform> params: Params;
#import is_nan

// Rows of a tile are a vector longer than they need be, so that the same column of several rows falls into different banks.
const PITCH: u32 = DIM / 4u + 1u;
const ROWS: u32 = OWNERS / PER;
const SHARE: u32 = 64u / OWNERS;
const CHUNKS: u32 = DIM / 4u / SHARE;
const STEP: u32 = STREAMED + 1u;
var<workgroup> queries: array<vec4<f32>, OWNERS * PITCH>;
var<workgroup> grads: array<vec4<f32>, OWNERS * PITCH>;
var<workgroup> keys: array<vec4<f32>, STREAMED * PITCH>;
var<workgroup> values: array<vec4<f32>, STREAMED * PITCH>;
var<workgroup> score_grads: array<f32, OWNERS * STEP>;

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
        var query_four = vec4(0.0);
        var grad_four = vec4(0.0);
#for E in 4
        if column + {E}u < params.head_dim {
            query_four[{E}] = f32(query[at + {E}u]) * params.scale;
            grad_four[{E}] = f32(grad[at + {E}u]);
        }
#end
        queries[row * PITCH + column / 4u] = query_four;
        grads[row * PITCH + column / 4u] = grad_four;
    }
    // This invocation's tokens are ROWS apart.
    let low = lane / STREAMED;
    let mine = lane % STREAMED;
    var known: array<vec2<f32>, PER>;
    for (var o = 0u; o < PER; o++) {
        if low + o * ROWS < count {
            known[o] = statistics[base + (low + o * ROWS) * params.heads];
        }
    }
    let owner = lane / SHARE;
    let part = lane % SHARE;
    var sums: array<vec4<f32>, CHUNKS>;
    let seen = first + count;
    for (var start = 0u; start < seen; start += STREAMED) {
        let present = min(STREAMED, seen - start);
        for (var place = lane; place < present * fours; place += 64u) {
            let row = place / fours;
            let column = 4u * (place - row * fours);
            let at = cache + (start + row) * pitch + column;
            var key_four = vec4(0.0);
            var value_four = vec4(0.0);
#for E in 4
            if column + {E}u < params.head_dim {
                key_four[{E}] = f32(key[at + {E}u]);
                value_four[{E}] = f32(value[at + {E}u]);
            }
#end
            keys[row * PITCH + column / 4u] = key_four;
            values[row * PITCH + column / 4u] = value_four;
        }
        workgroupBarrier();
        if low < ROWS && mine < present {
            var scores: array<f32, PER>;
            var weight_grads: array<f32, PER>;
            for (var four = 0u; four < fours; four++) {
                let key_four = keys[mine * PITCH + four];
                let value_four = values[mine * PITCH + four];
                for (var o = 0u; o < PER; o++) {
                    let at = (low + o * ROWS) * PITCH + four;
                    scores[o] += dot(queries[at], key_four);
                    weight_grads[o] += dot(grads[at], value_four);
                }
            }
            for (var o = 0u; o < PER; o++) {
                // A device may take exp of NaN for anything.
                let exponent = scores[o] - known[o].x;
                let weight = select(exp(exponent), exponent, is_nan(exponent));
                score_grads[(low + o * ROWS) * STEP + mine] = weight * (weight_grads[o] - known[o].y);
            }
        }
        workgroupBarrier();
        // What a token does not see must not count, not even times zero.
        let visible = u32(clamp(i32(first + owner + 1u) - i32(start), 0, i32(present)));
        for (var k = 0u; k < visible; k++) {
            let factor = score_grads[owner * STEP + k];
            for (var c = 0u; c < CHUNKS; c++) {
                sums[c] += factor * keys[k * PITCH + part + SHARE * c];
            }
        }
        // Here, not where the next begins: NVIDIA's OpenGL loses a barrier that opens a loop.
        workgroupBarrier();
    }
    if owner < count {
        let at = (base + owner * params.heads) * params.head_dim;
        for (var c = 0u; c < CHUNKS; c++) {
            let column = 4u * (part + SHARE * c);
            let four = sums[c] * params.scale;
#for E in 4
            if column + {E}u < params.head_dim {
                result[at + column + {E}u] = act(four[{E}]);
            }
#end
        }
    }
}
