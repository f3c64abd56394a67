// The gradients of causal attention's keys and values. One workgroup: one key-value head of OWNERS places of a sequence's
// cache, and of each query head of its group all tokens that see them, STREAMED at a time through workgroup memory; one
// invocation: PER of the keys with one of those tokens for the scores, then a share of one key's columns for the sums.
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
@group(0) @binding(5) var<storage, read_write> key_grad: array<act>;       // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(6) var<storage, read_write> value_grad: array<act>;     // (sequences, capacity, kv_heads, head_dim)
@group(1) @binding(0) var<uniform> params: Params;
#import is_nan

// Rows of a tile are a vector longer than they need be, so that the same column of several rows falls into different banks.
const PITCH: u32 = DIM / 4u + 1u;
const ROWS: u32 = OWNERS / PER;
const SHARE: u32 = 64u / OWNERS;
const CHUNKS: u32 = DIM / 4u / SHARE;
const STEP: u32 = STREAMED + 1u;
var<workgroup> keys: array<vec4<f32>, OWNERS * PITCH>;
var<workgroup> values: array<vec4<f32>, OWNERS * PITCH>;
var<workgroup> queries: array<vec4<f32>, STREAMED * PITCH>;
var<workgroup> grads: array<vec4<f32>, STREAMED * PITCH>;
// A weight, and the gradient of its score.
var<workgroup> pairs: array<vec2<f32>, OWNERS * STEP>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    if index >= params.tiles * params.kv_heads {
        return;
    }
    let in_sequence = (params.capacity + OWNERS - 1u) / OWNERS;
    let tile = params.tile_start + index / params.kv_heads;
    let kv_head = index % params.kv_heads;
    let sequence = tile / in_sequence;
    let first = (tile - sequence * in_sequence) * OWNERS;
    let count = min(OWNERS, params.capacity - first);
    let tokens = params.tokens_per_sequence;
    // Keys of the tile that a token wrote; the places behind them may hold anything.
    let written = u32(clamp(i32(tokens) - i32(first), 0, i32(count)));
    let fours = (params.head_dim + 3u) / 4u;
    let pitch = params.kv_heads * params.head_dim;
    let cache = (sequence * params.capacity + first) * pitch + kv_head * params.head_dim;
    for (var place = lane; place < written * fours; place += 64u) {
        let row = place / fours;
        let column = 4u * (place - row * fours);
        let at = cache + row * pitch + column;
        var key_four = vec4(0.0);
        var value_four = vec4(0.0);
#for E in 4
        if column + {E}u < params.head_dim {
            key_four[{E}] = f32(key[at + {E}u]) * params.scale;
            value_four[{E}] = f32(value[at + {E}u]);
        }
#end
        keys[row * PITCH + column / 4u] = key_four;
        values[row * PITCH + column / 4u] = value_four;
    }
    // This invocation's keys are ROWS apart.
    let low = lane / STREAMED;
    let mine = lane % STREAMED;
    let owner = lane / SHARE;
    let part = lane % SHARE;
    var key_sums: array<vec4<f32>, CHUNKS>;
    var value_sums: array<vec4<f32>, CHUNKS>;
    let grouped = params.heads / params.kv_heads;
    for (var head = kv_head * grouped; head < (kv_head + 1u) * grouped; head++) {
        for (var start = first; start < tokens; start += STREAMED) {
            let present = min(STREAMED, tokens - start);
            let base = (sequence * tokens + start) * params.heads + head;
            for (var place = lane; place < present * fours; place += 64u) {
                let row = place / fours;
                let column = 4u * (place - row * fours);
                let at = (base + row * params.heads) * params.head_dim + column;
                var query_four = vec4(0.0);
                var grad_four = vec4(0.0);
#for E in 4
                if column + {E}u < params.head_dim {
                    query_four[{E}] = f32(query[at + {E}u]);
                    grad_four[{E}] = f32(grad[at + {E}u]);
                }
#end
                queries[row * PITCH + column / 4u] = query_four;
                grads[row * PITCH + column / 4u] = grad_four;
            }
            workgroupBarrier();
            if low < ROWS && mine < present {
                let known = statistics[base + mine * params.heads];
                var scores: array<f32, PER>;
                var weight_grads: array<f32, PER>;
                for (var four = 0u; four < fours; four++) {
                    let query_four = queries[mine * PITCH + four];
                    let grad_four = grads[mine * PITCH + four];
                    for (var o = 0u; o < PER; o++) {
                        let at = (low + o * ROWS) * PITCH + four;
                        scores[o] += dot(keys[at], query_four);
                        weight_grads[o] += dot(values[at], grad_four);
                    }
                }
                for (var o = 0u; o < PER; o++) {
                    // A device may take exp of NaN for anything.
                    let exponent = scores[o] - known.x;
                    let weight = select(exp(exponent), exponent, is_nan(exponent));
                    pairs[(low + o * ROWS) * STEP + mine] = vec2(weight, weight * (weight_grads[o] - known.y));
                }
            }
            workgroupBarrier();
            // Tokens before the key do not see it, and must not count, not even times zero.
            let before = u32(clamp(i32(first + owner) - i32(start), 0, i32(present)));
            for (var t = before; t < present; t++) {
                let pair = pairs[owner * STEP + t];
                for (var c = 0u; c < CHUNKS; c++) {
                    value_sums[c] += pair.x * grads[t * PITCH + part + SHARE * c];
                    key_sums[c] += pair.y * queries[t * PITCH + part + SHARE * c];
                }
            }
            // Here, not where the next begins: NVIDIA's OpenGL loses a barrier that opens a loop.
            workgroupBarrier();
        }
    }
    if owner < count {
        let at = cache + owner * pitch;
        for (var c = 0u; c < CHUNKS; c++) {
            let column = 4u * (part + SHARE * c);
            let four = key_sums[c] * params.scale;
#for E in 4
            if column + {E}u < params.head_dim {
                key_grad[at + column + {E}u] = act(four[{E}]);
                value_grad[at + column + {E}u] = act(value_sums[c][{E}]);
            }
#end
        }
    }
}
