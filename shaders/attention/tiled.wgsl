// Causal attention of many tokens at once, with grouped key-value heads over a cache and a running softmax. One workgroup:
// one head of 16 tokens of a sequence, and all keys they see, KEYS at a time through workgroup memory; one invocation: two of
// the tokens, an eighth of the keys for the scores, an eighth of the columns for the weighted sums.
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
@group(0) @binding(0) var<storage, read> query: array<vec4<act>>;          // (all tokens, heads, head_dim)
@group(0) @binding(1) var<storage, read> key: array<vec4<act>>;            // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(2) var<storage, read> value: array<vec4<act>>;          // (sequences, capacity, kv_heads, head_dim)
@group(0) @binding(3) var<storage, read> past: array<u32>;                 // (sequences) tokens seen before
@group(0) @binding(4) var<storage, read_write> result: array<vec4<act>>;   // (all tokens, heads, head_dim)
@group(1) @binding(0) var<uniform> params: Params;

const TOKENS: u32 = 16u;
// Rows of a tile are a vector longer than they need be, so that the same column of several rows falls into different banks.
const PITCH: u32 = DIM / 4u + 1u;
const EACH: u32 = KEYS / 8u;
const CHUNKS: u32 = DIM / 32u;
var<workgroup> queries: array<vec4<f32>, TOKENS * PITCH>;
var<workgroup> tile: array<vec4<f32>, KEYS * PITCH>;
var<workgroup> scores: array<f32, TOKENS * (KEYS + 1u)>;
const NOTHING: f32 = -3.0e38;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let index = group.y * groups.x + group.x;
    if index >= params.tiles * params.heads {
        return;
    }
    let in_sequence = (params.tokens_per_sequence + TOKENS - 1u) / TOKENS;
    let token_tile = params.tile_start + index / params.heads;
    let head = index % params.heads;
    let sequence = token_tile / in_sequence;
    let first = (token_tile - sequence * in_sequence) * TOKENS;
    let count = min(TOKENS, params.tokens_per_sequence - first);
    // Keys that the first token of the tile sees, its own among them; the others see one more each.
    let seen = past[sequence] + first + 1u;
    let last = seen + count - 1u;
    let fours = params.head_dim / 4u;
    let pitch = params.kv_heads * fours;
    let cache = sequence * params.capacity * pitch + head / (params.heads / params.kv_heads) * fours;
    let base = (sequence * params.tokens_per_sequence + first) * params.heads + head;
    for (var place = lane; place < TOKENS * fours; place += 64u) {
        let token = place / fours;
        let four = place - token * fours;
        if token < count {
            queries[token * PITCH + four] = vec4<f32>(query[(base + token * params.heads) * fours + four]) * params.scale;
        }
    }
    let low = lane / 8u * 2u;
    let high = low + 1u;
    let part = lane % 8u;
    var maximum = vec2(NOTHING);
    var total = vec2(0.0);
    var low_sums: array<vec4<f32>, CHUNKS>;
    var high_sums: array<vec4<f32>, CHUNKS>;
    for (var start = 0u; start < last; start += KEYS) {
        let present = min(KEYS, last - start);
        for (var place = lane; place < present * fours; place += 64u) {
            let row = place / fours;
            let four = place - row * fours;
            tile[row * PITCH + four] = vec4<f32>(key[cache + (start + row) * pitch + four]);
        }
        workgroupBarrier();
        var dots: array<vec2<f32>, EACH>;
        for (var four = 0u; four < fours; four++) {
            let low_query = queries[low * PITCH + four];
            let high_query = queries[high * PITCH + four];
            for (var i = 0u; i < EACH; i++) {
                let keys = tile[(part + 8u * i) * PITCH + four];
                dots[i] += vec2(dot(low_query, keys), dot(high_query, keys));
            }
        }
        for (var i = 0u; i < EACH; i++) {
            scores[low * (KEYS + 1u) + part + 8u * i] = dots[i].x;
            scores[high * (KEYS + 1u) + part + 8u * i] = dots[i].y;
        }
        workgroupBarrier();
        for (var place = lane; place < present * fours; place += 64u) {
            let row = place / fours;
            let four = place - row * fours;
            tile[row * PITCH + four] = vec4<f32>(value[cache + (start + row) * pitch + four]);
        }
        workgroupBarrier();
        // How many of these keys each of the two tokens sees.
        let low_keys = u32(clamp(i32(seen + low) - i32(start), 0, i32(present)));
        let high_keys = u32(clamp(i32(seen + high) - i32(start), 0, i32(present)));
        var highest = maximum;
        for (var k = 0u; k < low_keys; k++) {
            highest.x = max(highest.x, scores[low * (KEYS + 1u) + k]);
        }
        for (var k = 0u; k < high_keys; k++) {
            highest.y = max(highest.y, scores[high * (KEYS + 1u) + k]);
        }
        let correction = exp(maximum - highest);
        maximum = highest;
        total *= correction;
        for (var c = 0u; c < CHUNKS; c++) {
            low_sums[c] *= correction.x;
            high_sums[c] *= correction.y;
        }
        for (var k = 0u; k < high_keys; k++) {
            let high_weight = exp(scores[high * (KEYS + 1u) + k] - highest.y);
            total.y += high_weight;
            for (var c = 0u; c < CHUNKS; c++) {
                high_sums[c] += high_weight * tile[k * PITCH + part + 8u * c];
            }
            if k < low_keys {
                let low_weight = exp(scores[low * (KEYS + 1u) + k] - highest.x);
                total.x += low_weight;
                for (var c = 0u; c < CHUNKS; c++) {
                    low_sums[c] += low_weight * tile[k * PITCH + part + 8u * c];
                }
            }
        }
        // Here, not where the next begins: NVIDIA's OpenGL loses a barrier that opens a loop.
        workgroupBarrier();
    }
    for (var c = 0u; c < CHUNKS; c++) {
        let four = part + 8u * c;
        if four < fours {
            if low < count {
                result[(base + low * params.heads) * fours + four] = vec4<act>(low_sums[c] / total.x);
            }
            if high < count {
                result[(base + high * params.heads) * fours + four] = vec4<act>(high_sums[c] / total.y);
            }
        }
    }
}
