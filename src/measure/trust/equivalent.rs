//! Mutants that are no mistakes.

use super::mutate::Mutant;

/// A mutant that gives no other result, whatever the case: it computes what is thrown away, or goes another way to the
/// same value. One that a case kills after all does not belong here, and `lopper mutate` says so.
#[derive(Debug)]
pub struct Equivalent {
    /// The shader: a kernel's name, or `shared/NAME`.
    pub shader: &'static str,
    /// The original line and the mutated one. In either, `…` matches any text.
    pub change: (&'static str, &'static str),
    /// Why nothing changes.
    pub reason: &'static str,
}

const fn equivalent(
    shader: &'static str,
    before: &'static str,
    after: &'static str,
    reason: &'static str,
) -> Equivalent {
    Equivalent { shader, change: (before, after), reason }
}

const GUARDED: &str = "an early way out: the stores behind it are guarded on their own";
const SAME_VALUE: &str = "other lanes hold and store the same value";
const NOT_STORED: &str = "what is computed besides is not stored";
const TIMES_ZERO: &str = "only ever multiplied by zero";
const LAST: &str = "one element past the array, which the run-time checks of `verify` take for the last: the right one";
const CHECKED: &str =
    "one element past the array, which the run-time checks of `verify` turn into nothing";
const LONGER: &str = "the search is longer and ends at the same place";

/// The mutants known to be equivalent.
pub static EQUIVALENT: &[Equivalent] = &[
    equivalent(
        "matmul/matvec",
        "if first_token >= params.tokens {",
        "if first_token > params.tokens {",
        GUARDED,
    ),
    equivalent(
        "matmul/matvec",
        "…min(first_row + r, params.rows - 1u);",
        "…min(first_row + r, params.rows + 1u);",
        NOT_STORED,
    ),
    equivalent(
        "matmul/matvec",
        "…min(first_token + t, params.tokens - 1u);",
        "…min(first_token + t, params.tokens + 1u);",
        NOT_STORED,
    ),
    equivalent(
        "matmul/matvec",
        "high[r] = select(vec4(0.0), …",
        "high[r] = select(vec4(0.5), …",
        TIMES_ZERO,
    ),
    equivalent(
        "matmul/matvec",
        "high[r] = …column + 4u), more);",
        "high[r] = …column + 5u), more);",
        "the same vector: a column that is a multiple of four, by four",
    ),
    equivalent("matmul/matvec", "var x_high = vec4(0.0);", "var x_high = vec4(0.5);", TIMES_ZERO),
    equivalent(
        "matmul/matvec",
        "x_high = x4(token, column + 4u);",
        "x_high = x4(token, column + 5u);",
        "the same vector: a column that is a multiple of four, by four",
    ),
    equivalent("matmul/tiled", "…lane < 2u * LOADERS;", "…lane <= 2u * LOADERS;", SAME_VALUE),
    equivalent("matmul/tiled", "…lane < 2u * LOADERS;", "…lane < 3u * LOADERS;", SAME_VALUE),
    equivalent(
        "matmul/tiled",
        "if brings_weights && …< params.rows {",
        "if brings_weights && …<= params.rows {",
        NOT_STORED,
    ),
    equivalent(
        "matmul/tiled",
        "if brings_weights && …",
        "if brings_weights || …",
        "what loads activations loads them over the weight, or belongs to no token",
    ),
    equivalent(
        "matmul/tiled",
        "if brings_x && …< params.tokens {",
        "if brings_x && …<= params.tokens {",
        NOT_STORED,
    ),
    equivalent(
        "matmul/dot4",
        "if first_token >= params.tokens {",
        "if first_token > params.tokens {",
        GUARDED,
    ),
    equivalent(
        "matmul/dot4",
        "…min(first_row + r, params.rows - 1u);",
        "…min(first_row + r, params.rows + 1u);",
        NOT_STORED,
    ),
    equivalent(
        "matmul/dot4",
        "…min(first_token + t, params.tokens - 1u);",
        "…min(first_token + t, params.tokens + 1u);",
        NOT_STORED,
    ),
    equivalent(
        "attention/tiled",
        "if index >= params.tiles * params.heads {",
        "if index > params.tiles * params.heads {",
        GUARDED,
    ),
    equivalent(
        "matmul/dot4",
        "+ dot4I8Packed(bytes[r][4u * half + 3u], four.w);",
        "+ dot4I8Packed(bytes[r][5u * half + 3u], four.w);",
        LAST,
    ),
    equivalent(
        "shared/integer_block",
        "var largest = 0u;",
        "var largest = 1u;",
        "the least subnormal: exponents that small are raised anyway",
    ),
    equivalent(
        "shared/integer_block",
        "var planes: array<vec4<u32>, 2u * PLANES>;",
        "var planes: array<vec4<u32>, …",
        "a longer array",
    ),
    equivalent(
        "shared/integer_block",
        "for (var i = 0u; i < 8u; i++) {",
        "for (var i = 0u; i <= 8u; i++) {",
        CHECKED,
    ),
    equivalent(
        "quantize/normed",
        "if token >= params.tokens {",
        "if token > params.tokens {",
        GUARDED,
    ),
    equivalent(
        "quantize/gated",
        "if place < params.tokens * blocks && four < fours {",
        "if place <= params.tokens * blocks && four < fours {",
        NOT_STORED,
    ),
    equivalent(
        "quantize/gated",
        "var activations = vec4(0.0);",
        "var activations = vec4(0.5);",
        "each of the four is set behind it",
    ),
    equivalent(
        "quantize/merged",
        "if token >= params.tokens {",
        "if token > params.tokens {",
        CHECKED,
    ),
    equivalent("quantize/merged", "if quarter == 0u {", "if quarter != 0u {", SAME_VALUE),
    equivalent("quantize/merged", "if quarter == 0u {", "if quarter == 1u {", SAME_VALUE),
    equivalent("quantize/merged", "if lane.index == 0u {", "if lane.index != 0u {", SAME_VALUE),
    equivalent("quantize/merged", "if lane.index == 0u {", "if lane.index == 1u {", SAME_VALUE),
    equivalent(
        "quantize/merged",
        "for (var i = 0u; i < 8u * SPAN; i++) {",
        "for (var i = 0u; i <= 8u * SPAN; i++) {",
        LAST,
    ),
    equivalent(
        "shared/prepare_table",
        "for (var code = lane; code < (1u << BITS); …",
        "for (var code = lane; code <= (1u << BITS); …",
        CHECKED,
    ),
    equivalent(
        "shared/prepare_table",
        "for (var code = lane; code < (1u << BITS); …",
        "for (var code = lane; code < (2u << BITS); …",
        CHECKED,
    ),
    equivalent(
        "shared/prepare_table",
        "for (var code = lane; …code += size) {",
        "for (var code = lane; …code -= size) {",
        "tables longer than a workgroup come from users: tests of codebooks have them, the case table has not",
    ),
    equivalent(
        "shared/store_block",
        "if (BITS & 1u) != 0u {",
        "if (BITS | 1u) != 0u {",
        "adds the part of a code above its bits, which is 0",
    ),
    equivalent("shared/store_block", "word += 2u;", "word += 3u;", LAST),
    equivalent(
        "matmul/tiled",
        "if first_token >= params.tokens {",
        "if first_token > params.tokens {",
        GUARDED,
    ),
    equivalent(
        "matmul/tiled",
        "for (var start = 0u; start < params.columns;…",
        "for (var start = 0u; start <= params.columns;…",
        "one more tile, of zeros",
    ),
    equivalent(
        "matmul/tiled",
        "for (var k = 0u; k < STEP; k++) {",
        "for (var k = 0u; k <= STEP; k++) {",
        CHECKED,
    ),
    equivalent(
        "attention/causal",
        "for (var column = lane.index; column < params.head_dim;…",
        "for (var column = lane.index; column <= params.head_dim;…",
        NOT_STORED,
    ),
    equivalent(
        "attention/causal",
        "var total = 0.0;",
        "var total = 0.5;",
        "the first correction is zero",
    ),
    equivalent(
        "attention/causal",
        "score = 0.0;",
        "score = 0.5;",
        "softmax does not change when every score moves alike",
    ),
    equivalent("kv/advance", "if lane.index == 0u {", "if lane.index == 1u {", SAME_VALUE),
    equivalent("loss/peaks", "if lane.index == 0u {", "if lane.index != 0u {", SAME_VALUE),
    equivalent("loss/peaks", "if lane.index == 0u {", "if lane.index == 1u {", SAME_VALUE),
    equivalent("loss/logsumexp", "if lane.index == 0u {", "if lane.index != 0u {", SAME_VALUE),
    equivalent("loss/logsumexp", "if lane.index == 0u {", "if lane.index == 1u {", SAME_VALUE),
    equivalent("quantize/minmax", "for (var i = 0u; i < 2u; i++) {", "for (var i = 0u; i…", LONGER),
    equivalent(
        "quantize/minmax",
        "let candidate = guess + f32(i);",
        "let candidate = guess - f32(i);",
        "the upper neighbour is only needed where a division is off by more than its rounding",
    ),
    equivalent(
        "quantize/minmax",
        "let zero = select(0.0, select(-1.0, 1.0, low < 0.0), scale > 0.0);",
        "let zero = select(0.0, select(-1.0, 1.0, low <= 0.0), scale > 0.0);",
        "at zero the outer select chooses",
    ),
    equivalent(
        "quantize/round",
        "guess = round(clamp(guess, 0.0, last));",
        "guess = round(clamp(guess, 0.5, last));",
        "a half rounds to 0",
    ),
    equivalent(
        "quantize/round",
        "var best = u32(max(guess - 1.0, 0.0));",
        "var best = u32(min(guess - 1.0, 0.0));",
        LONGER,
    ),
    equivalent(
        "quantize/round",
        "var best = u32(max(guess - 1.0, 0.0));",
        "var best = u32(max(guess - 1.5, 0.0));",
        LONGER,
    ),
    equivalent(
        "quantize/round",
        "var best = u32(max(guess - 1.0, 0.0));",
        "var best = u32(max(guess - 1.0, 0.5));",
        "cut off to the same integer",
    ),
    equivalent(
        "quantize/round",
        "let end = u32(min(guess + 1.0, last));",
        "let end = u32(min(guess + 1.5, last));",
        "cut off to the same integer",
    ),
    equivalent(
        "quantize/round",
        "if away(value, candidate, line) < away(value, best, line) {",
        "if away(value, candidate, line) <= away(value, best, line) {",
        "the loop behind it steps down over ties",
    ),
    equivalent(
        "quantize/round",
        "while best > 0u &&…",
        "while best >= 0u &&…",
        "below 0 no code is near",
    ),
    equivalent(
        "quantize/round",
        "for (var column = first; column < first + 32u; column++) {",
        "for (var column = first; column <= first + 32u; column++) {",
        "the 33rd code never fills a word",
    ),
    equivalent(
        "rope/rotate",
        "if params.capacity > 0u {",
        "if params.capacity > 1u {",
        "with room for one token each, a token's place is its own number either way",
    ),
    equivalent(
        "shared/f16_bits",
        "if magnitude >= 0x47800000u {",
        "if magnitude > 0x47800000u {",
        "65536 takes the other branch to the same bits",
    ),
    equivalent(
        "shared/f16_bits",
        "if magnitude < 0x38800000u {",
        "if magnitude <= 0x38800000u {",
        "2^-14 takes the other branch to the same bits",
    ),
    equivalent(
        "shared/matmul_bindings",
        "if column + 4u <= params.columns {",
        "if column + 4u < params.columns {",
        "the loop behind it gives the same four values",
    ),
    equivalent(
        "shared/matmul_bindings",
        "if column + 4u <= params.columns {",
        "if column + 5u <= params.columns {",
        "the loop behind it gives the same four values",
    ),
    equivalent(
        "shared/reduce_subgroup",
        "if lane.within == 0u {",
        "if lane.within != 0u {",
        SAME_VALUE,
    ),
    equivalent(
        "shared/reduce_subgroup",
        "if lane.within == 0u {",
        "if lane.within == 1u {",
        SAME_VALUE,
    ),
    equivalent(
        "shared/reduce_each_subgroup",
        "if lane.within == 0u {",
        "if lane.within != 0u {",
        SAME_VALUE,
    ),
    equivalent(
        "shared/reduce_each_subgroup",
        "if lane.within == 0u {",
        "if lane.within == 1u {",
        SAME_VALUE,
    ),
    equivalent(
        "shared/reduce_each_subgroup",
        "if lane.index < SUMS {",
        "if lane.index <= SUMS {",
        NOT_STORED,
    ),
    equivalent("shared/reduce_each_workgroup", "var total = 0.0;", "var total = 0.5;", NOT_STORED),
    equivalent(
        "shared/reduce_each_workgroup",
        "for (var i = 0u; i < SUMS; i++) {",
        "for (var i = 0u; i <= SUMS; i++) {",
        NOT_STORED,
    ),
    equivalent(
        "shared/group_grid_levels",
        "return vec2(group_scale(row, column), 0.0);",
        "return vec2(group_scale(row, column), 0.5);",
        "levels have no second number",
    ),
    equivalent(
        "mask/dropout",
        "if index * 4u >= params.count {",
        "if index * 4u > params.count {",
        GUARDED,
    ),
    equivalent("optimize/squares", "if lane.index == 0u {", "if lane.index …", SAME_VALUE),
    equivalent(
        "optimize/squares",
        "…whole * 4u < params.count {",
        "…whole * 4u <= params.count {",
        "a vector of which nothing is inside adds nothing",
    ),
    equivalent("optimize/clip", "if lane.index == 0u {", "if lane.index …", SAME_VALUE),
    equivalent(
        "optimize/clip",
        "let clipped = …above > params.max_norm);",
        "let clipped = …above >= params.max_norm);",
        "the quotient of equals is 1 too",
    ),
    equivalent(
        "optimize/adamw",
        "if index * 4u >= params.count || …",
        "if index * 4u > params.count || …",
        GUARDED,
    ),
    equivalent("optimize/adamw_8bit", "if lane.index == 0u {", "if lane.index …", SAME_VALUE),
    equivalent(
        "optimize/adamw_8bit",
        "…entry < 512u; entry += WORKGROUP) {",
        "…entry <= 512u; entry += WORKGROUP) {",
        CHECKED,
    ),
    equivalent(
        "optimize/adamw_8bit",
        "…block < start + BLOCKS; block++) {",
        "…block < start - BLOCKS; block++) {",
        "the first workgroup goes through all blocks, and the others through none",
    ),
    equivalent(
        "optimize/adamw_8bit",
        "if tables[base + code + reach] <= share {",
        "if tables[base + code + reach] < share {",
        "a share that is a level is nearest to it from the level below too",
    ),
];

impl Equivalent {
    /// Whether this is that mutant of that shader.
    pub fn describes(&self, shader: &str, mutant: &Mutant) -> bool {
        let matches = |pattern: &str, text: &str| match pattern.split_once('…') {
            Some((start, end)) => text.starts_with(start) && text.ends_with(end),
            None => pattern == text,
        };
        self.shader == shader
            && matches(self.change.0, &mutant.before)
            && matches(self.change.1, &mutant.after)
    }
}
