//! Sparsity: masks, SparseGPT, swaps and refits beside what defines them, qualities that correct implementations reach, stages and
//! what they refuse.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, Random};
use lopper::methods::calibration::{Calibration, Rows};
use lopper::methods::linalg::squared_outputs;
use lopper::methods::linalg::{cholesky, cholesky_solve, inverse_transposed, reversed_cholesky};
use lopper::methods::prune::sparse::allocate::{Threshold, outlier_share, spread};
use lopper::methods::prune::sparse::gpt::{Options, solve};
use lopper::methods::prune::sparse::refit::{outputs, refit};
use lopper::methods::prune::sparse::swaps::improve;
use lopper::methods::prune::sparse::{Pattern, keep_highest, masked, scores};
use lopper::model::{Checkpoint, Outline, Role, Weights};
use lopper::stages::Stage;
use lopper::stages::method::OfMethod;
use lopper::stages::prune::Sparsify;

use crate::models::{logits, pass, run_stage, speech_perplexity};
use crate::numbers::{Within, assert_close, relative_error};
use crate::program::{read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("sparsity": factors, masks, sparsegpt, swaps, refits, shares, quality, rules, codes_stay,
        nearer_the_model)
}

/// Weights, and the Gram matrix of inputs some of which are much alike.
struct Problem {
    rows: usize,
    n: usize,
    weights: Vec<f32>,
    gram: Vec<f64>,
}

impl Problem {
    fn new(rows: usize, n: usize, tokens: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut number = || f64::from(random.below(20_001)) / 10_000.0 - 1.0;
        let weights = (0..rows * n).map(|_| number() as f32).collect();
        let mut gram = vec![0.0; n * n];
        let sizes: Vec<f64> = (0..n).map(|_| (2.0 * number()).exp()).collect();
        for _ in 0..tokens {
            let shared = number();
            let x: Vec<f64> = sizes.iter().map(|size| size * (0.7 * shared + number())).collect();
            for i in 0..n {
                for j in 0..n {
                    gram[i * n + j] += x[i] * x[j];
                }
            }
        }
        Self { rows, n, weights, gram }
    }

    fn squares(&self) -> Vec<f32> {
        (0..self.n).map(|i| self.gram[i * (self.n + 1)] as f32).collect()
    }

    fn wanda(&self, pattern: Pattern) -> Vec<bool> {
        let scores = scores(&self.weights, self.n, Some(&self.squares()));
        keep_highest(&scores, self.n, pattern, 0.5)
    }

    /// d^T G d of a row's difference from the dense one, term by term.
    fn error(&self, row: usize, new: &[f32]) -> f64 {
        let line = row * self.n..(row + 1) * self.n;
        let pairs = self.weights[line.clone()].iter().zip(&new[line]);
        let d: Vec<f64> = pairs.map(|(w, new)| f64::from(*w) - f64::from(*new)).collect();
        let terms = (0..self.n * self.n).map(|at| d[at / self.n] * self.gram[at] * d[at % self.n]);
        terms.sum()
    }

    fn errors(&self, new: &[f32]) -> f64 {
        (0..self.rows).map(|row| self.error(row, new)).sum()
    }
}

/// Factors multiply to what they are factors of, solutions solve, and what is not positive definite is found.
fn factors() -> Result<(), Failed> {
    let n = 37;
    let problem = Problem::new(1, n, 200, 3);
    let gram = &problem.gram;
    let lower = reversed_cholesky(gram.clone(), n).map_err(|bad| format!("{bad:?}"))?;
    let transposed = inverse_transposed(&lower, n);
    for i in 0..n {
        for j in 0..n {
            let found: f64 = (0..n).map(|m| lower[m * n + i] * lower[m * n + j]).sum();
            let wanted = gram[i * n + j];
            assert!((found - wanted).abs() < 1e-10 * gram[i * (n + 1)].max(gram[j * (n + 1)]));
            assert!(i >= j || lower[i * n + j] == 0.0, "above the diagonal");
            let one: f64 = (0..n).map(|m| transposed[m * n + i] * lower[m * n + j]).sum();
            assert!((one - f64::from(u8::from(i == j))).abs() < 1e-8, "an inverse: {one}");
        }
    }
    let mut factor = gram.clone();
    cholesky(&mut factor, n).map_err(|bad| format!("{bad:?}"))?;
    let wanted: Vec<f64> = (0..n).map(|i| i as f64 - 5.0).collect();
    let mut x: Vec<f64> =
        (0..n).map(|i| (0..n).map(|j| gram[i * n + j] * wanted[j]).sum()).collect();
    cholesky_solve(&factor, n, &mut x);
    assert_close("solution", &x, &wanted, Within::Largest(1e-9));
    let mut singular = gram.clone();
    (0..n).for_each(|j| singular[4 * n + j] = singular[3 * n + j]);
    (0..n).for_each(|i| singular[i * n + 4] = singular[i * n + 3]);
    singular[4 * n + 4] = singular[3 * n + 3] - 1e-3;
    assert!(cholesky(&mut singular, n).is_err(), "not positive definite");
    Ok(())
}

/// Masks take the lowest, of equal ones the first, in the numbers that the pattern says.
fn masks() -> Result<(), Failed> {
    let values = [3.0, 1.0, 1.0, 1.0, 0.5, 9.0, 2.0, 1.0f32];
    let kept = |pattern: Pattern, ratio: f64| -> String {
        let kept = keep_highest(&values, 4, pattern, ratio);
        kept.iter().map(|kept| if *kept { '1' } else { '0' }).collect()
    };
    assert_eq!(kept(Pattern::Tensor, 0.5), "10000111", "the first of equal ones");
    assert_eq!(kept(Pattern::Tensor, 0.6), "10000111", "the whole part");
    assert_eq!(kept(Pattern::Row, 0.5), "10010110");
    assert_eq!(kept(Pattern::Row, 0.76), "10000100");
    assert_eq!(kept(Pattern::Groups { keep: 1, of: 2 }, 0.0), "10010110");
    assert_eq!(kept(Pattern::Groups { keep: 3, of: 4 }, 0.0), "10110111");
    // 0.7 of 10 is 7, though 0.7 * 10 is less in binary fractions.
    let tenth: Vec<f32> = (0..10).map(|i| i as f32).collect();
    let count =
        |ratio| keep_highest(&tenth, 10, Pattern::Row, ratio).iter().filter(|k| !**k).count();
    assert_eq!([0.1, 0.3, 0.7, 0.99].map(count), [1, 3, 7, 9]);
    // Wanda's scores by hand.
    let found = scores(&[1.0, -2.0, 3.0, -4.0], 2, Some(&[4.0, 0.25]));
    assert_eq!(found, [2.0, 1.0, 6.0, 2.0]);
    let problem = Problem::new(7, 12, 40, 4);
    let exact: Vec<f64> = problem.weights.iter().map(|w| f64::from(*w)).collect();
    let zeros = vec![0.0; exact.len()];
    let found = squared_outputs(&exact, problem.n, &problem.gram);
    assert_close("squared outputs", &[found], &[problem.errors(&zeros)], Within::Each(1e-9));
    Ok(())
}

/// SparseGPT's solution beside the optimal brain surgeon's, column by column, with the inverse taken anew of what is left.
fn sparsegpt() -> Result<(), Failed> {
    let problem = Problem::new(5, 24, 100, 5);
    let (n, damping) = (problem.n, 0.01);
    let mean = (0..n).map(|i| problem.gram[i * (n + 1)]).sum::<f64>() / n as f64;
    for (pattern, block) in [
        (Pattern::Tensor, 8),
        (Pattern::Tensor, 100),
        (Pattern::Row, 8),
        (Pattern::Groups { keep: 2, of: 4 }, 6),
        (Pattern::Groups { keep: 1, of: 3 }, 24),
    ] {
        let options = Options { damping, block, pattern, ratio: 0.5 };
        let solved = solve(&problem.weights, n, &problem.gram, options)?;
        let solved = solved.map_err(|bad| format!("{bad:?}"))?;
        let gone = solved.kept.iter().filter(|kept| !**kept).count();
        let expected = if let Pattern::Groups { keep: 1, .. } = pattern { 80 } else { 60 };
        assert_eq!(gone, expected, "{pattern:?}");
        for row in 0..problem.rows {
            let line = row * n..(row + 1) * n;
            let mut w: Vec<f64> =
                problem.weights[line.clone()].iter().map(|w| f64::from(*w)).collect();
            let kept = &solved.kept[line.clone()];
            for c in 0..n {
                if kept[c] {
                    continue;
                }
                // Column c of the inverse of the damped matrix over the columns from c on.
                let left = n - c;
                let mut h: Vec<f64> = (0..left * left)
                    .map(|at| problem.gram[(c + at / left) * n + c + at % left])
                    .collect();
                (0..left).for_each(|i| h[i * (left + 1)] += damping * mean);
                cholesky(&mut h, left).map_err(|bad| format!("{bad:?}"))?;
                let mut column = vec![0.0; left];
                column[0] = 1.0;
                cholesky_solve(&h, left, &mut column);
                let factor = w[c] / column[0];
                (0..left).for_each(|i| w[c + i] -= factor * column[i]);
                w[c] = 0.0;
            }
            assert_close("row", &solved.weights[line], &w, Within::Largest(1e-6));
        }
        let zeros = |(w, kept): (&f32, &bool)| *kept || *w == 0.0;
        assert!(solved.weights.iter().zip(&solved.kept).all(zeros), "exact zeros");
    }
    // A matrix without full rank is damped; an input that is always 0 keeps no weight.
    let mut few = Problem::new(3, 24, 6, 6);
    for i in 0..24 {
        (few.gram[i * 24 + 7], few.gram[7 * 24 + i]) = (0.0, 0.0);
    }
    let options = Options { damping: 0.0, block: 128, pattern: Pattern::Tensor, ratio: 0.5 };
    let solved = solve(&few.weights, 24, &few.gram, options)?.map_err(|bad| format!("{bad:?}"))?;
    assert!(solved.damping > 0.0, "damping {}", solved.damping);
    assert!((0..3).all(|row| solved.weights[row * 24 + 7] == 0.0), "a dead input");
    assert!(solved.weights.iter().all(|w| w.is_finite()), "{:?}", solved.weights);
    Ok(())
}

/// Swaps end where no exchange lowers a row's error, as every pair says; each of them lowers it; what stays is as many.
fn swaps() -> Result<(), Failed> {
    for (pattern, seed) in
        [(Pattern::Row, 7), (Pattern::Tensor, 8), (Pattern::Groups { keep: 2, of: 4 }, 9)]
    {
        let problem = Problem::new(6, 32, 90, seed);
        let n = problem.n;
        // By magnitude alone, there is much to improve.
        let magnitudes = scores(&problem.weights, n, None);
        let first = keep_highest(&magnitudes, n, pattern, 0.5);
        let run = |most: usize| {
            let mut kept = first.clone();
            let made = improve(&problem.weights, n, &problem.gram, pattern, most, &mut kept);
            (made, problem.errors(&masked(&problem.weights, &kept)), kept)
        };
        let begin = problem.errors(&masked(&problem.weights, &first));
        let (one, some, whole) = (run(1), run(3), run(1000));
        assert!(one.0 <= 6 && one.0 > 0 && whole.0 > some.0, "{} {} {}", one.0, some.0, whole.0);
        assert!(begin > one.1 && one.1 > some.1 && some.1 > whole.1, "errors fall");
        let kept = &whole.2;
        for row in 0..problem.rows {
            let at = |c: usize| row * n + c;
            let count = |kept: &[bool]| (0..n).filter(|c| kept[at(*c)]).count();
            assert_eq!(count(kept), count(&first), "as many stay");
            let now = problem.error(row, &masked(&problem.weights, kept));
            // The best single exchange of all, of the first mask, is the one that is made.
            let best = |mask: &[bool]| {
                let mut least = f64::INFINITY;
                for i in (0..n).filter(|i| mask[at(*i)]) {
                    for j in (0..n).filter(|j| !mask[at(*j)]) {
                        if matches!(pattern, Pattern::Groups { .. }) && i / 4 != j / 4 {
                            continue;
                        }
                        let mut other = mask.to_vec();
                        (other[at(i)], other[at(j)]) = (false, true);
                        least = least.min(problem.error(row, &masked(&problem.weights, &other)));
                    }
                }
                least
            };
            let least = best(kept);
            assert!(least >= now * (1.0 - 1e-8), "row {row}: {now} could be {least}");
            let was = problem.error(row, &masked(&problem.weights, &first));
            let after = problem.error(row, &masked(&problem.weights, &one.2));
            assert_close("first exchange", &[after], &[best(&first).min(was)], Within::Each(1e-9));
        }
        if let Pattern::Groups { keep, of } = pattern {
            let even = |group: &[bool]| group.iter().filter(|kept| **kept).count() == keep;
            assert!(kept.chunks(of).all(even), "N of each M");
        }
    }
    Ok(())
}

/// A refit is where the error's slope is 0 along all weights that stay; damping draws it to the old weights.
fn refits() -> Result<(), Failed> {
    let problem = Problem::new(4, 20, 90, 11);
    let (n, kept) = (problem.n, problem.wanda(Pattern::Row));
    let target = outputs(&problem.weights, n, &problem.gram);
    let fit = |damping: f64| {
        refit(&problem.weights, n, (&problem.gram, &target), &kept, damping)
            .map_err(|bad| Failed::from(format!("{bad:?}")))
    };
    let (solved, damping) = fit(0.0)?;
    assert_eq!(damping, 0.0, "none was needed");
    for row in 0..problem.rows {
        for i in (0..n).filter(|i| kept[row * n + i]) {
            let slope = |j: usize| {
                let at = row * n + j;
                let lost = f64::from(problem.weights[at]) - f64::from(solved[at]);
                problem.gram[i * n + j] * lost
            };
            let (slope, size): (f64, f64) =
                ((0..n).map(slope).sum(), (0..n).map(|j| slope(j).abs()).sum());
            assert!(slope.abs() < 1e-5 * size, "row {row}, weight {i}: {slope} of {size}");
        }
    }
    let errors = [0.0, 0.01, 1.0, 1e6].map(|damping| fit(damping).map(|fit| fit.0));
    let errors = errors.into_iter().map(|fit| fit.map(|new| problem.errors(&new)));
    let errors = errors.collect::<Result<Vec<_>, _>>()?;
    let plain = problem.errors(&masked(&problem.weights, &kept));
    assert!(errors.is_sorted() && errors[3] < plain, "{errors:?}, {plain}");
    assert_close("much damping", &[errors[3]], &[plain], Within::Each(1e-3));
    let zeros = |(w, kept): (&f32, &bool)| *kept || *w == 0.0;
    assert!(solved.iter().zip(&kept).all(zeros), "exact zeros");
    // Without full rank it is damped, and says with how much.
    let few = Problem::new(2, 20, 4, 12);
    let target = outputs(&few.weights, n, &few.gram);
    let (solved, damping) = refit(&few.weights, n, (&few.gram, &target), &[true; 40], 0.0)
        .map_err(|bad| format!("{bad:?}"))?;
    assert!(damping > 0.0 && solved.iter().all(|w| w.is_finite()), "{damping}: {solved:?}");
    Ok(())
}

/// OWL's shares by hand; a threshold over many scores is the one that sorting finds.
fn shares() -> Result<(), Failed> {
    let block = vec![vec![1.0; 18], vec![10.0, 41.0]];
    // The mean is 3.45: one score is more than 5 times that.
    assert_eq!(outlier_share(&block, 5.0), 0.05);
    assert_eq!(outlier_share(&block, 2.0), 0.1);
    let found = spread(&[0.0, 1.0, 2.0], &[10, 10, 20], 0.5, 0.08);
    // Raised by 0, 0.08 and 0.16; on the mean over weights by 0.1.
    assert_close("shares", &found, &[0.6, 0.52, 0.44], Within::Each(1e-12));
    assert_eq!(spread(&[3.0, 3.0], &[1, 2], 0.4, 0.08), [0.4, 0.4]);
    let mut random = Random::new(13);
    let mut scores: Vec<f32> = (0..5000).map(|_| random.below(700) as f32 / 64.0).collect();
    scores.extend([0.0, 0.0, 1e-30, 3e4]);
    let mut sorted = scores.clone();
    sorted.sort_by(f32::total_cmp);
    for go in [0, 1, 2, 1700, 2502, 5003] {
        let mut threshold = Threshold::default();
        let found = loop {
            scores.chunks(999).for_each(|part| threshold.count(part));
            if let Some(found) = threshold.next(go as u64) {
                break found;
            }
        };
        let below = sorted.iter().filter(|score| **score < sorted[go]).count();
        assert_eq!(found, (sorted[go], (go - below) as u64), "{go}");
    }
    Ok(())
}

fn stage(method: &'static str, keys: &str) -> Result<Sparsify, Failed> {
    let stage: Sparsify = toml::from_str(keys)?;
    Ok(stage.of_method(method))
}

/// Zeros of the linear layers of a model, and their weights.
fn zeros(model: &dyn Weights) -> Result<(usize, usize), Failed> {
    let (mut zeros, mut all) = (0, 0);
    for spec in model.specs().iter().filter(|spec| spec.role == Role::Linear) {
        let values = model.load(spec)?.to_f32();
        zeros += values.iter().filter(|value| **value == 0.0).count();
        all += values.len();
    }
    Ok((zeros, all))
}

/// The perplexities of tiny-llama that a correct implementation reaches: by magnitude within 0.5 %, by Wanda with the dense
/// model's statistics within 1 %; and half of the weights are zeros in each.
fn quality() -> Result<(), Failed> {
    let parent = Checkpoint::open("embedded:tiny-llama")?;
    let known = read_json("assets/golden/quality.json")?;
    let calibration = "[calibration]\noffset = 9000\nsamples = 64\nlength = 256\n";
    for (method, keys, key, within) in [
        ("magnitude", "ratio = 0.5", "magnitude 50% per matrix", 0.005),
        ("magnitude", "pattern = \"2:4\"", "magnitude 2:4", 0.005),
        ("wanda", "ratio = 0.5", "wanda 50% per row, one-shot statistics", 0.01),
    ] {
        let stage = stage(method, &format!("{keys}\nfeed = \"parent\"\n{calibration}"))?;
        let folder = tempfile::tempdir()?;
        let pruned = run_stage(&parent, &parent, &stage, folder.path())?;
        let (zeros, all) = zeros(&pruned)?;
        assert_eq!(2 * zeros, all, "{key}");
        let expected = known[key].as_f64().ok_or(key)?;
        let found = speech_perplexity(&pass(&Device::Cpu), &pruned, 8192)?;
        assert_close(key, &[found], &[expected], Within::Each(within));
    }
    Ok(())
}

/// What a stage does to each tensor, and what it refuses.
fn rules() -> Result<(), Failed> {
    let model = Outline::of(&Checkpoint::open("embedded:nano-llama")?)?;
    let plan = |method, keys: &str| -> Result<_, Failed> {
        Ok(stage(method, keys)?.plan(&model).map_err(|error| error.to_string()))
    };
    let planned =
        plan("wanda", "ratio = 0.4\nratios = [\"*.1.*\", \"*.1.mlp*=0.2\", \"*0.self_attn.q*=0\"]");
    assert!(planned?.is_err(), "a ratio is due");
    assert!(stage("wanda", "ratio = 0.4\nratoi = 3").is_err(), "a key that there is not");
    let keys = "ratio = 0.4\nratios = [\"*.1.*=0.3\", \"*.1.mlp*=0.2\", \"*0.self_attn.q*=0\"]";
    let planned = plan("wanda", keys)??;
    let change = |name: &str| planned.changes.get(name).map(String::as_str);
    assert_eq!(change("model.layers.1.mlp.up_proj.weight"), Some("wanda 0.2 zeros"));
    assert_eq!(change("model.layers.1.self_attn.k_proj.weight"), Some("wanda 0.3 zeros"));
    assert_eq!(change("model.layers.0.self_attn.k_proj.weight"), Some("wanda 0.4 zeros a row"));
    assert_eq!(change("model.layers.0.self_attn.q_proj.weight"), None);
    assert_eq!(change("model.embed_tokens.weight"), None);
    assert_eq!(planned.outline.parameters(), model.parameters());
    for (method, keys, field, found) in [
        ("magnitude", "", "stage.ratio", "none"),
        ("magnitude", "ratio = 0.0", "stage.ratio", "0"),
        ("magnitude", "ratio = 1.0", "stage.ratio", "1; 1 % is 0.01"),
        ("wanda", "ratio = nan", "stage.ratio", "NaN"),
        ("wanda", "pattern = \"4:2\"", "stage.pattern", "4:2"),
        ("wanda", "pattern = \"4:4\"", "stage.pattern", "4:4"),
        ("wanda", "pattern = \"0:4\"", "stage.pattern", "0:4"),
        ("wanda", "pattern = \"2:\"", "stage.pattern", "2:"),
        ("wanda", "pattern = \"2:5\"", "stage.pattern", "2:5"),
        ("wanda", "pattern = \"rows\"", "stage.pattern", "rows"),
        ("wanda", "pattern = \"2:4\"\nratio = 0.6", "stage.ratio", "0.6"),
        ("wanda", "pattern = \"2:4\"\nallocate = \"owl\"", "stage.allocate", "N:M"),
        ("wanda", "ratio = 0.5\nratios = [\"x=0.1\"]", "stage.ratios", "x"),
        ("wanda", "ratio = 0.5\nratios = [\"*=1\"]", "stage.ratios", "*=1"),
        ("wanda", "ratio = 0.5\nswaps = 0", "stage.swaps", "0"),
        ("wanda", "ratio = 0.5\nspread = 0.1", "stage.spread", "0.1"),
        ("wanda", "ratio = 0.5\nstats = \"s\"\nfeed = \"compressed\"", "stage.feed", "stats s"),
        ("wanda", "ratio = 0.5\ndamping = 0.1", "stage.damping", "0.1"),
        ("wanda", "ratio = 0.5\nblock_columns = 64", "stage.block_columns", "64"),
        ("sparsegpt", "ratio = 0.5\nblock_columns = 0", "stage.block_columns", "0"),
        ("sparsegpt", "ratio = 0.5\ndamping = -1.0", "stage.damping", "-1"),
        ("sparsegpt", "ratio = 0.5\nswaps = 9", "stage.swaps", "sparsegpt"),
        ("sparsegpt", "ratio = 0.5\npattern = \"global\"", "stage.pattern", "global"),
        ("wanda", "ratio = 0.5\ninclude = [\"x\"]", "stage.include", "match none"),
    ] {
        let refused = plan(method, keys)?.err().ok_or(format!("{keys} is taken"))?;
        let said = refused.contains(field) && refused.contains(found);
        assert!(said, "{method} {keys}: {refused}");
    }
    Ok(())
}

/// Codes of a symmetric type hold the zeros, and those of weights that stay are the parent's; what is solved for becomes f16.
fn codes_stay() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let quantize = "quantize embedded:nano-llama --type q8_0 --no-eval --formats packed --out q";
    succeeds(folder.path(), quantize)?;
    let parent = Checkpoint::open(&folder.path().join("q/packed").to_string_lossy())?;
    for (method, keys, format) in [
        ("magnitude", "pattern = \"2:4\"", "int8-g32"),
        ("wanda", "ratio = 0.5\ncalibration = { samples = 4, length = 32 }", "int8-g32"),
        ("sparsegpt", "ratio = 0.5\ncalibration = { samples = 8, length = 64 }", "f16"),
    ] {
        let out = tempfile::tempdir()?;
        let pruned = run_stage(&parent, &parent, &stage(method, keys)?, out.path())?;
        let (zeros, all) = zeros(&pruned)?;
        // q8_0 has zeros of its own.
        assert!(2 * zeros >= all && zeros < all * 52 / 100, "{method}: {zeros} of {all}");
        for spec in pruned.specs().iter().filter(|spec| spec.role == Role::Linear) {
            let (before, after) = (parent.load(spec)?, pruned.load(spec)?);
            assert_eq!(after.format.label(), format, "{method}");
            let pairs = before.to_f32().into_iter().zip(after.to_f32());
            let kept = pairs.filter(|(_, after)| *after != 0.0);
            let same = format == "f16" || kept.clone().all(|(before, after)| before == after);
            assert!(same, "{method}: {}", spec.name);
            assert!(kept.count() > 0, "{method}: {} is empty", spec.name);
        }
    }
    Ok(())
}

/// Block by block, a refit brings what the model says nearer to what the dense one says, on tokens that it was not fitted to too.
fn nearer_the_model() -> Result<(), Failed> {
    let parent = Checkpoint::open("embedded:nano-llama")?;
    let calibration = "[calibration]\nsamples = 24\nlength = 32\n";
    let of = |offset: usize| -> Result<Vec<u32>, Failed> {
        let text =
            Calibration { offset, samples: Some(4), length: Some(32), ..Calibration::default() };
        Ok(Rows::of_text(&text, &parent.tokenizer()?)?.ids)
    };
    let device = &Device::Cpu;
    for method in ["wanda", "sparsegpt"] {
        let mut found = Vec::new();
        for keys in ["", "refit = true\n"] {
            let stage = stage(method, &format!("pattern = \"2:4\"\n{keys}{calibration}"))?;
            let folder = tempfile::tempdir()?;
            let pruned = run_stage(&parent, &parent, &stage, folder.path())?;
            for offset in [0, 5000] {
                let ids = of(offset)?;
                let (dense, now) =
                    (logits(device, &parent, &ids, 4)?, logits(device, &pruned, &ids, 4)?);
                found.push(relative_error(&now, &dense));
            }
        }
        let nearer = found[2] < 0.8 * found[0] && found[3] < 0.95 * found[1];
        assert!(nearer, "{method}: {found:?}");
    }
    Ok(())
}
