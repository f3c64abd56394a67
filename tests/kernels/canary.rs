//! The comparison itself: broken on purpose, it must notice. For every kernel, results and shaders are falsified.

use libtest_mimic::{Failed, Trial};
use lopper::compare::{Expected, Measured, compare};
use lopper::device::{
    Args, CaseData, Failure, HostTensor, Kernel, Runner, Variant, check_case, fragments,
};
use lopper::gpu::{Options, Tier};
use lopper::kernels::TABLE;

use crate::machine::{gpu_trial, open};

pub fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = TABLE
        .iter()
        .copied()
        .map(|kernel| {
            Trial::test(format!("canary::results::{}", kernel.name), move || {
                falsify_results(kernel)
            })
        })
        .collect();
    for (kernel, find, replace) in BROKEN_SHADERS {
        let name = format!(
            "canary::shader::{kernel}::{}",
            replace.split_whitespace().collect::<Vec<_>>().join("_")
        );
        trials.push(gpu_trial(name, move || falsify_shader(kernel, find, replace)));
    }
    trials.push(Trial::test("canary::compare_rules", compare_rules));
    trials
}

fn reference(kernel: &Kernel, variant: &Variant, data: &CaseData) -> Vec<Expected> {
    let tensors = data.tensors.iter().map(HostTensor::view).collect();
    (kernel.reference)(&Args { variant, parameters: &data.parameters, tensors })
}

/// Each falsification of a right result must be noticed, in every output of every small enough case.
fn falsify_results(kernel: &'static Kernel) -> Result<(), Failed> {
    let variant = (kernel.variants)().remove(0);
    let mut tried = 0;
    for case in &kernel.checks(&variant) {
        let data = (case.make)(&variant);
        if data.tensors.iter().map(HostTensor::len).sum::<usize>() > 200_000 {
            continue;
        }
        for expected in reference(kernel, &variant, &data) {
            let right = expected.values.clone();
            compare(&expected, &Measured { values: right.clone() })
                .map_err(|d| format!("the truth fails: {d}"))?;
            let last = right.len() - 1;
            let finite = |index: usize| right[index].is_finite();
            let Some(place) = (0..=last).rev().find(|&index| finite(index)) else {
                continue;
            };
            let bound = expected.bounds[place];
            let mut twice = right.clone();
            twice[place] += (2.0 * bound).max(f64::MIN_POSITIVE.max(right[place].abs() * 1e-15));
            let mut nan = right.clone();
            nan[place] = f64::NAN;
            let mut infinite = right.clone();
            infinite[place] = f64::INFINITY;
            let mut unwritten = right.clone();
            unwritten[place] = f64::from(f32::from_bits(0x7fff_7fff));
            for (what, values) in [
                ("twice its bound", twice),
                ("NaN", nan),
                ("infinity", infinite),
                ("unwritten", unwritten),
            ] {
                if compare(&expected, &Measured { values }).is_ok() {
                    return Err(format!("{}: {what} at element {place} passed", case.label).into());
                }
                tried += 1;
            }
        }
    }
    if tried == 0 { Err("no case was small enough".into()) } else { Ok(()) }
}

/// Mistakes that kernels are known to make: (kernel, text of the shader or of an import, what stands there instead).
const BROKEN_SHADERS: &[(&str, &str, &str)] = &[
    ("norm/rms", "mean + params.epsilon", "mean + 1.1 * params.epsilon"),
    (
        "norm/rms",
        "column < params.columns; column += WORKGROUP) {\n        let",
        "column + 1u < params.columns; column += WORKGROUP) {\n        let",
    ),
    ("matmul/tiled", "k < STEP;", "k < STEP - 1u;"),
    ("matmul/tiled", "start < params.columns;", "start + STEP < params.columns;"),
    ("matmul/tiled", "weight_tile[(quad + {e}u)", "weight_tile[(quad + 3u - {e}u)"),
    ("matmul/matvec", "column < params.columns;", "column + 4u < params.columns;"),
    ("matmul/ternary", "] ^ below", "] | below"),
    ("matmul/ternary", "words[5] >> 12u", "words[5] >> 13u"),
    ("matmul/ternary", "unit < units", "unit + 1u < units"),
    ("copy/ternary", "code == 3u", "false"),
    ("embed/gather", "column + i < params.columns", "column + i <= params.columns"),
    ("embed/gather", "ids[token] - params.row_start", "ids[token]"),
    ("rope/rotate", "second * rotation.x + first", "second * rotation.x - first"),
    ("kv/append", "past[sequence] + token", "token"),
    ("attention/causal", "* params.scale", "* 1.0"),
    ("attention/causal", "new_maximum), mine < end)", "new_maximum), mine + 1u < end)"),
    (
        "attention/causal",
        "score += score_bias(head, mine, own)",
        "score += score_bias(head, mine, order)",
    ),
    ("attention/causal", "end - 1u, end + order", "end - 2u, end + order"),
    ("attention/causal", "places[params.sequences + head", "places[head"),
    ("attention/causal", "sums[slot] * correction", "sums[slot]"),
    ("attention/lse_delta", "totals *= exp(maxima - highest)", "totals *= 1.0"),
    ("attention/lse_delta", "< vec4(params.window)", "<= vec4(params.window)"),
    ("attention/lse_delta", " * exp(memory[part * 8u + lane] - maximum)", ""),
    ("attention/tiled", "< vec4(params.window)", "<= vec4(params.window)"),
    ("attention/tiled", "low = own + 1 -", "low = own + 2 -"),
    ("attention/tiled", "mine * params.causal", "mine"),
    ("attention/lse_delta", "here = own_place(places[sequence], first) + mine", "here = first"),
    ("attention/tiled", "scores = with_soft_cap(scores)", "scores = scores"),
    ("attention/causal", "min(params.window, ", "max(1u, "),
    ("attention/tiled", "*= correction[{I}]", "*= 1.0"),
    ("attention/tiled", "i32(k) + 3 <= own", "i32(k) <= own"),
    ("attention/query_grad", "- delta)", "- 0.0)"),
    ("attention/query_grad", "i32(k) < low + 3", "i32(k) < low"),
    ("attention/query_grad", "i32(place + mine)", "i32(first + mine)"),
    ("attention/query_grad", "* soft_cap_slopes(scores[{J}])", ""),
    ("attention/query_grad", "i32(k) + 3 <= own", "i32(k) <= own"),
    ("attention/query_grad", "with_bias(scores, head, start + other, here)", "scores"),
    ("attention/query_grad", "CHUNKS + {C}u] * params.scale", "CHUNKS + {C}u] * 1.0"),
    ("attention/key_value_grad", "- known.y", "- 0.0"),
    ("attention/key_value_grad", "max(own + 4, i32(begin))", "max(own, i32(begin))"),
    ("attention/key_value_grad", ") * slopes", ")"),
    ("attention/key_value_grad", "own + 3 + i32(params.window)", "own + 2 + i32(params.window)"),
    ("attention/key_value_grad", "OWNERS - 1u + params.window", "params.window"),
    ("attention/key_value_grad", "places[sequence], tokens, causal", "tokens, tokens, causal"),
    ("attention/key_value_grad", "select(0u, first, causal)", "first"),
    ("attention/key_value_grad", "first + mine + {I}u, start", "first + mine, start"),
    ("attention/bias", "place % params.distances", "place / params.heads"),
    ("attention/bias_grad", "i < OWNERS;", "i + 1u < OWNERS;"),
    ("attention/bias_grad", "- i32(OWNERS - 1u) + reach", "- i32(OWNERS) + reach"),
    ("attention/bias_grad", "0, span.x == 0u", "1, span.x == 0u"),
    ("attention/bias_grad", "params.heads] = 0.0", "params.heads] += 0.0"),
    ("attention/bias_grad", "exists & (tokens", "(tokens"),
    (
        "attention/key_value_grad",
        "= head / (params.heads / params.kv_heads)",
        "= head % params.kv_heads",
    ),
    ("attention/group_sum", "head < params.group", "head + 1u < params.group"),
    ("attention/group_sum", "index / fours * params.group * fours", "index / fours * fours"),
    ("attention/delta", "products[lane + 2u] + products[lane + 3u]", "products[lane + 2u]"),
    ("attention/tiled", "maxima[{I}] + log(totals[{I}])", "maxima[{I}]"),
    ("gate/glu", "1.0 + exp(-", "1.0 + exp("),
    ("gate/glu", "* x * x * x", "* x * x"),
    ("gate/glu", "t * t", "t"),
    ("gate/glu_grad", "* argument_slope *", "*"),
    ("gate/glu_grad", "x * (0.39894228 *", "(0.39894228 *"),
    ("matmul/merge", "params.epilogue >> EPILOGUE_ACTIVATION", "0u"),
    ("logits/soft_cap", "size > 0.625", "size > 1.5"),
    ("logits/soft_cap_grad", "1.0 - ratio * ratio", "1.0 - ratio"),
    ("norm/rms_grad", "- x[at] * pull", ""),
    ("norm/center", "- mean", "- 0.0"),
    ("norm/shift", "% params.columns", "% (params.columns + 1u)"),
    ("gate/activate", "x * x * x", "x * x"),
    ("gate/activate_grad", "* argument_slope *", "*"),
    ("norm/gain_grad", "share < SHARES", "share < SHARES - 1u"),
    ("loss/cross_entropy_grad", "exp(logit) - one", "exp(logit)"),
    ("embed/scatter", "place < starts[row + 1u]", "place + 1u < starts[row + 1u]"),
    ("copy/cast", "* params.factor", "* 1.0"),
    ("copy/compact", "kept_rows[row]", "kept_rows[down]"),
    ("copy/compact", "+ kept_columns[column]", "+ column"),
    ("score/rows", "= params.row_start + index", "= index"),
    ("score/rows", "sum += result[row]", "sum += 0.0"),
    ("score/columns", "params.row_start + lane / COLUMNS", "lane / COLUMNS"),
    ("score/columns", "row += SHARES", "row += SHARES + 1u"),
    ("score/fisher", "params.factor * (", "("),
    ("matmul/gram", "token{q} < end", "token{q} <= end"),
    ("matmul/gram", "column + r < params.width", "column + r <= params.width"),
    ("matmul/gram", "k < STEP;", "k < STEP - 1u;"),
    ("matmul/gram", "tile.x > tile.y", "tile.x >= tile.y"),
    ("matmul/gram", "value += result[place]", "value += 0.0"),
    ("matmul/gram", "part * params.part_tokens", "0u"),
    ("matmul/gram", "BAND * (tiles - start);", "BAND * tiles;"),
    ("score/sums", "{ return abs(value); }", "{ return value; }"),
    ("score/sums", "return value * value;", "return abs(value);"),
    ("score/sums", "accumulate == 1u", "accumulate == 2u"),
    ("score/blocks", "member * width + first", "first"),
    ("score/blocks", "is_nan(next) || next", "next"),
    ("score/blocks", "finished(value, params.members)", "value"),
    ("select/top_k", "before < wanted", "before <= wanted"),
    ("select/top_k", "done < 32u", "done < 24u"),
    ("select/top_k", "wanted -= above", "wanted -= 0u"),
    ("select/top_tokens", "min(before.y, wanted)", "before.y"),
    ("select/top_tokens", "before.y < wanted", "before.y <= wanted"),
    ("select/threshold", ">= bar", "> bar"),
    ("select/threshold", "bar > 0u && ", ""),
    ("mask/zero_weights", "kept && column_mask", "column_mask"),
    ("mask/zero_weights", "row_mask[row]", "row_mask[down]"),
    ("mask/keep_groups", "(key == own && other < index)", "key == own"),
    ("mask/keep_groups", "index % params.group", "index % 4u"),
    ("mask/keep_groups", "before < params.keep", "before <= params.keep"),
    ("mask/keep_runs", "same && before < wanted", "same"),
    ("mask/keep_runs", "radix_select(base,", "radix_select(0u,"),
    ("mask/keep_runs", "out_t(weight[base + i]), kept", "out_t(weight[i]), kept"),
    ("mask/score_grad", "result[index] * weight[index]", "result[index] * abs(weight[index])"),
    ("residual/add", "result[index] + vec4", "vec4"),
    ("loss/logsumexp", "maximum + log(sum)", "log(sum)"),
    ("logits/combine", "row * params.right_columns", "row * params.columns"),
    ("logits/penalize", "logit < 0.0", "logit > 0.0"),
    ("logits/penalize", "seen[index] = bits;", ""),
    ("logits/penalize", "place < end", "true"),
    ("logits/penalize", "penalties[row]", "penalties[0]"),
    ("logits/probabilities", "= highest * scale", "= highest"),
    ("logits/probabilities", "wanted = masses.wanted;", "wanted = masses.wanted / 2u;"),
    ("logits/probabilities", "key >= least && (key", "(key"),
    ("logits/probabilities", "below >= floor_of_row;", "true;"),
    ("logits/probabilities", "filters[row]", "filters[0]"),
    ("logits/probabilities", "let stays = whole && ", "let stays = "),
    ("logits/draw", "chances[3u * row + 1u]", "chances[1u]"),
    ("logits/draw", "+ 2u] != 0u", "+ 2u] != 2u"),
    ("logits/draw", "largest == maximum", "true"),
    ("logits/draw", "v.w += v.y * v.z;", "v.w += v.y;"),
    ("logits/draw", "select(-log(share), series, low)", "series"),
    ("logits/accept", "stays && accepted == draft", "stays"),
    ("logits/accept", "params.place + draft", "params.place"),
    ("logits/accept", "weight - draft_chance(accepted, column)", "weight"),
    ("logits/accept", "token >= params.draft_columns", "false"),
    ("logits/accept", "place_of.x, most.x > 0.0", "place_of.y, most.x > 0.0"),
    ("quantize/absmax", "abs(value) > abs(extreme)", "value > extreme"),
    ("quantize/minmax", "high = max(high, value)", "high = value"),
    ("quantize/round", "round(clamp(guess, 0.0, last))", "floor(clamp(guess, 1.0, last)) - 1.0"),
    (
        "dequantize/rows",
        "row * params.columns + column + i] =",
        "row * params.columns + column + i + 1u] =",
    ),
    ("optimize/squares", "whole * 4u < params.count", "false"),
    ("optimize/squares", "params.first + part", "part"),
    ("optimize/clip", "norm + EPSILON", "norm"),
    ("optimize/clip", "select(0.0, params.scale * clipped, finite)", "params.scale * clipped"),
    ("optimize/adamw", "+ params.epsilon", ""),
    ("optimize/adamw", "gradient[index] * state[1]", "gradient[index]"),
    ("optimize/adamw_8bit", "share > middle", "share > middle + 1e-4"),
    ("optimize/adamw_8bit", "largest < LEAST", "false"),
    ("mask/dropout", "first + 1u", "first"),
    ("optimize/sign", "params.low, params.high", "params.low, 1e9"),
    ("optimize/sign", "|| state[2] == 0.0", ""),
    ("quantize/clip_range", "(clip.x - clip.y)", "clip.x"),
    ("quantize/clip_range", "clip.y * grid.y;", "clip.x * grid.y;"),
    ("quantize/shift", "column / params.group_columns", "column / 32u"),
    ("quantize/rounding_grad", "nearest >= 0.0 && ", "true && "),
    ("quantize/rounding_grad", "vec2(level - steps, 0.0)", "vec2(level, 0.0)"),
    ("quantize/rounding_grad", "- total.x * low", "- 0.0 * low"),
    ("quantize/rounding_grad", "column += params.lanes", "column += 2u * params.lanes"),
    ("loss/distil", "* params.inverse;", "* 1.0;"),
    ("loss/distil", "shares.y - shares.x", "shares.y"),
    ("loss/distil", "- logs - pull", "- logs"),
    ("loss/distil", "pull = parts.y;", "pull = value;"),
    ("loss/distil_top", "shares.y - shares.x", "shares.y"),
    ("loss/hidden", "scored[row] != 0u && ", ""),
    ("loss/hidden", "2.0 * params.weight", "params.weight"),
    ("loss/hidden", "size += own * own", "size += abs(own)"),
    ("quantize/scale_grad", "column + i < end", "column + i + 1u < end"),
    ("quantize/scale_grad", "params.row_start + row", "row"),
    ("quantize/store_scales", "magnitude > 0x7f800000u", "false"),
    ("quantize/store_scales", "rest == half && (kept & 1u) == 1u", "rest == half"),
];

fn falsify_shader(kernel: &'static str, find: &str, replace: &str) -> Result<(), Failed> {
    let kernel =
        TABLE.iter().copied().find(|row| row.name == kernel).ok_or("the kernel is in the table")?;
    let first = &(kernel.variants)()[0];
    let imported = fragments()
        .filter(|(name, _)| kernel.imports(first, name))
        .map(|(name, text)| (format!("shared/{name}"), text));
    let mut texts = std::iter::once((kernel.name.to_string(), kernel.source)).chain(imported);
    let (name, text) = texts
        .find(|(_, text)| text.contains(find))
        .ok_or_else(|| format!("the shader no longer contains `{find}`"))?;
    let runner: Runner =
        open(Options { tier: Tier::Baseline, checked: true, ..Options::default() })?
            .with_source(&name, text.replacen(find, replace, 1));
    for variant in
        (kernel.variants)().iter().filter(|variant| !variant.uses_f16() && !variant.subgroups)
    {
        for case in &kernel.checks(variant) {
            match check_case(&runner, kernel, variant, case) {
                Ok(_) => {}
                Err(Failure::Error(error)) => return Err(format!("did not run: {error}").into()),
                Err(_) => return Ok(()),
            }
        }
    }
    Err("every case passed".into())
}

fn compare_rules() -> Result<(), Failed> {
    let nan = f64::NAN;
    let infinity = f64::INFINITY;
    let rules = [
        (1.0, 0.1, 1.05, true),
        (1.0, 0.1, 1.2, false),
        (1.0, 0.0, 1.0, true),
        (1.0, nan, 1.0, false),
        (1.0, infinity, nan, false),
        (nan, 0.0, nan, true),
        (nan, infinity, 1.0, false),
        (infinity, infinity, infinity, true),
        (infinity, infinity, -infinity, false),
        (infinity, infinity, 1.0, false),
    ];
    for (value, bound, measured, fits) in rules {
        let expected = Expected { values: vec![value], bounds: vec![bound] };
        assert!(
            compare(&expected, &Measured { values: vec![measured] },).is_ok() == fits,
            "expected {value} within {bound}, measured {measured}: judged {}",
            !fits
        );
    }
    Ok(())
}
