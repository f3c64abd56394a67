//! Weights that are drawn anew, and stages that are repeated.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::error::Error;
use lopper::model::{Checkpoint, Outline, Role, Weights};
use lopper::plan::Plan;
use lopper::recipe::{Recipe, Sweep};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{NANO, lopper, read_json, sha256, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("rounds":
        fresh_weights, fresh_shapes, unfolded, totals, wrong_rounds, figures_by_round, earlier_teacher, smooth_curves)
}

fn parse(text: &str) -> Result<Recipe, Error> {
    Recipe::parse(Path::new("r.toml"), &format!("model = '{NANO}'\n{text}"))
}

/// Mean and deviation.
fn moments(values: &[f32]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let square = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>();
    (mean, (square / count).sqrt())
}

/// GPT-2's initialization, the same for a seed; a model that knows nothing finds all tokens about as likely.
fn fresh_weights() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let recipe = format!(
        "model = '{NANO}'\nseed = 5\n[[stage]]\nkind = 'fresh'\n[evaluate]\nctx = 64\nmax_tokens = 1024\n[export]\nformats = ['packed', 'hf']\n"
    );
    std::fs::write(folder.path().join("r.toml"), &recipe)?;
    let run = succeeds(&folder, "compress r.toml --out a --json")?.json()?;
    succeeds(&folder, "compress r.toml --out b")?;
    succeeds(&folder, "compress r.toml --seed 6 --out c")?;
    let hash = |out: &str| -> Result<String, Failed> {
        Ok(sha256(&std::fs::read(folder.path().join(out).join("hf/model.safetensors"))?))
    };
    assert_eq!(hash("a")?, hash("b")?, "one seed");
    assert_ne!(hash("a")?, hash("c")?, "another seed");
    let parent = Checkpoint::open(NANO)?;
    let fresh = Checkpoint::open(folder.path().join("a/packed").to_str().ok_or("a path")?)?;
    assert_eq!(fresh.config().blocks, parent.config().blocks);
    let layers = fresh.config().layers() as f64;
    for spec in fresh.specs() {
        let (mean, deviation) = moments(&fresh.load(spec)?.to_f32());
        let (wanted, spread) = match spec.role {
            Role::Norm => (1.0, 0.0),
            Role::Bias => (0.0, 0.0),
            _ if spec.name.contains("o_proj") || spec.name.contains("down_proj") => {
                (0.0, 0.02 / (2.0 * layers).sqrt())
            }
            _ => (0.0, 0.02),
        };
        // Five standard errors of each.
        let count = (spec.rows * spec.columns) as f64;
        let near = |found: f64, wanted: f64, error: f64| (found - wanted).abs() <= 5.0 * error;
        assert!(
            near(mean, wanted, spread / count.sqrt())
                && near(deviation, spread, spread / (2.0 * count).sqrt()),
            "{}: {mean} ± {deviation}, not {wanted} ± {spread}",
            spec.name
        );
    }
    let vocabulary = fresh.config().vocab_size as f64;
    let perplexity = run["stages"][0]["figures"]["perplexity"]["value"].as_f64().ok_or("none")?;
    assert!((perplexity / vocabulary - 1.0).abs() < 0.1, "{perplexity} of {vocabulary} tokens");
    assert!(run["stages"][0]["figures"]["weight_error"].is_null(), "{run}");
    Ok(())
}

/// A smaller shape, behind a cut too; a wrong one is refused by its key.
fn fresh_shapes() -> Result<(), Failed> {
    let parent = Checkpoint::open(NANO)?;
    let outline = Outline::of(&parent)?;
    let left =
        |text: &str| -> Result<Outline, Error> { Ok(Plan::new(&parse(text)?, &parent)?.left) };
    let small = left(
        "[[stage]]\nkind = 'fresh'\nhidden = 32\nlayers = 1\nheads = 2\nkv_heads = 1\nffn = 48\n",
    )?;
    let block = small.config.blocks[0];
    assert_eq!((small.config.hidden_size, small.config.layers()), (32, 1));
    assert_eq!((block.heads, block.kv_heads, block.intermediate_size), (2, 1, 48));
    assert_eq!(small.config.head_dim, outline.config.head_dim);
    let cut = "[[stage]]\nkind = 'prune'\nratio = 0.5\nwidths = ['ffn']\nmultiple = 1\n";
    let behind = left(&format!("{cut}[[stage]]\nkind = 'fresh'\n"))?;
    assert_eq!(behind.config, left(cut)?.config, "the shape that a cut left");
    assert!(behind.copies.iter().all(Option::is_none));
    let widest = outline.config.widest();
    for (keys, named) in [
        ("layers = 0".to_string(), "stage.layers"),
        (format!("layers = {}", outline.config.layers() + 1), "stage.layers"),
        (format!("hidden = {}", outline.config.hidden_size + 1), "stage.hidden"),
        (format!("heads = {}", widest.heads + 1), "stage.heads"),
        (format!("ffn = {}", widest.intermediate_size + 1), "stage.ffn"),
        ("width = 3".to_string(), "width"),
    ] {
        refused(left(&format!("[[stage]]\nkind = 'fresh'\n{keys}\n")), named);
    }
    Ok(())
}

fn refused<T>(result: Result<T, Error>, named: &str) {
    let error = result.err().expect("a wrong recipe");
    let said = named.split(" & ").all(|text| error.to_string().contains(text));
    assert!(error.exit_code() == 2 && said, "{named}: {error}");
}

const TWO_ROUNDS: &str = "
[[stage]]
kind = 'quantize'
bits = 8
[[stage]]
kind = 'repeat'
times = 2
[[stage.stage]]
kind = 'prune'
widths = ['ffn']
by_round = { ratio = [0.25, 0.5], seed_less = [] }
[[stage.stage]]
kind = 'tune'
method = 'full'
by_round = { steps = [3, 2], include = [['*'], ['lm_head']] }
[[stage]]
kind = 'quantize'
bits = 4
";

/// Rounds are stages one after the other, in recipes and in sweeps; printed and read again they are the same.
fn unfolded() -> Result<(), Failed> {
    let repeated = TWO_ROUNDS.replace(", seed_less = []", "");
    let recipe = parse(&repeated)?;
    let flat = "
        [[stage]]\nkind = 'quantize'\nbits = 8
        [[stage]]\nkind = 'prune'\nround = 1\nwidths = ['ffn']\nratio = 0.25
        [[stage]]\nkind = 'tune'\nround = 1\nmethod = 'full'\nsteps = 3
        [[stage]]\nkind = 'prune'\nround = 2\nwidths = ['ffn']\nratio = 0.5
        [[stage]]\nkind = 'tune'\nround = 2\nmethod = 'full'\nsteps = 2\ninclude = ['lm_head']
        [[stage]]\nkind = 'quantize'\nbits = 4\n";
    assert_eq!(recipe, parse(flat)?);
    assert_eq!(recipe, Recipe::parse(Path::new("r.toml"), &recipe.to_toml())?);
    let titles: Vec<String> = recipe.stage.iter().map(|stage| stage.title()).collect();
    assert_eq!(
        titles,
        [
            "quantize",
            "prune, round 1",
            "tune, round 1",
            "prune, round 2",
            "tune, round 2",
            "quantize"
        ]
    );
    let sweep = format!(
        "model = '{NANO}'\n[[text]]\n[[case]]\nname = 'a'\nvary = {{ key = 'times', values = [1, 2] }}\n[[case.stage]]\nkind = 'repeat'\n[[case.stage.stage]]\nkind = 'prune'\nratio = 0.2\n"
    );
    let points = Sweep::parse(Path::new("s.toml"), &sweep)?.points(Path::new("s.toml"))?;
    let stages: Vec<usize> = points.iter().map(|point| point.recipe.stage.len()).collect();
    assert_eq!(stages, [1, 2]);
    Ok(())
}

/// A total comes to itself: each round takes as much of the first model. Zeros that are there count as ones that are made.
fn totals() -> Result<(), Failed> {
    let ratios = |keys: &str| -> Result<Vec<f64>, Failed> {
        let recipe = parse(&format!(
            "[[stage]]\nkind = 'repeat'\ntimes = 4\n[[stage.stage]]\nkind = 'prune'\n{keys}\nby_round = {{ ratio = {{ total = 0.5 }} }}\n"
        ))?;
        let ratio = |keys: serde_json::Map<String, Value>| keys["ratio"].as_f64();
        let found = recipe.stage.iter().map(|stage| ratio(stage.keys()));
        Ok(found.collect::<Option<_>>().ok_or("ratios")?)
    };
    let near = |found: &[f64], wanted: [f64; 4]| {
        found.len() == 4 && found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-12)
    };
    let cut = ratios("method = 'slicegpt'")?;
    assert!(near(&cut, [1.0 / 8.0, 1.0 / 7.0, 1.0 / 6.0, 1.0 / 5.0]), "{cut:?}");
    assert!((cut.iter().map(|ratio| 1.0 - ratio).product::<f64>() - 0.5).abs() < 1e-12);
    let of_first = ratios("")?;
    assert!(near(&of_first, [0.125, 0.25, 0.375, 0.5]), "{of_first:?}");
    let zeros = ratios("method = 'magnitude'")?;
    assert!(near(&zeros, [0.125, 0.25, 0.375, 0.5]), "{zeros:?}");
    // Whole units fall as in one cut, and the rounds leave its shape, of widths of few units too (two key-value heads).
    let parent = Checkpoint::open(NANO)?;
    for keys in [
        "multiple = 32",
        "multiple = 1",
        "multiple = 1\nratio_of = 'parameters'",
        "method = 'minitron'\nscope = 'channel'\nmultiple = 8",
        "method = 'minitron'\nmultiple = 16",
    ] {
        let rounds = format!(
            "[[stage]]\nkind = 'repeat'\ntimes = 4\n[[stage.stage]]\nkind = 'prune'\n{keys}\nby_round = {{ ratio = {{ total = 0.5 }} }}\n"
        );
        let one = format!("[[stage]]\nkind = 'prune'\n{keys}\nratio = 0.5\n");
        let (rounds, one) =
            (Plan::new(&parse(&rounds)?, &parent), Plan::new(&parse(&one)?, &parent));
        let (rounds, one) = (rounds?, one?);
        assert_eq!(rounds.left.config, one.left.config, "{keys}");
        let sizes: Vec<u64> = rounds.stages.iter().map(|stage| stage.parameters).collect();
        assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes[0] > sizes[3], "{keys}: {sizes:?}");
        let numbers: Vec<_> = rounds.stages.iter().map(|stage| stage.round).collect();
        assert_eq!(numbers, [1, 2, 3, 4].map(Some));
    }
    Ok(())
}

/// Errors say the round and the key.
fn wrong_rounds() -> Result<(), Failed> {
    refused(parse(TWO_ROUNDS), "round 1 & by_round.seed_less has 0 values & 2 rounds");
    let of = |times: &str, keys: &str| {
        format!("[[stage]]\nkind = 'repeat'\n{times}\n[[stage.stage]]\nkind = 'prune'\n{keys}\n")
    };
    for (times, keys, named) in [
        ("", "ratio = 0.2", "times"),
        ("times = 0", "ratio = 0.2", "times 0"),
        ("times = 2\nrounds = 3", "ratio = 0.2", "rounds"),
        ("times = 2", "ratoi = 0.2", "round 1 & prune & ratoi"),
        (
            "times = 2",
            "ratio = 0.2\nby_round = { ratio = [0.1, 0.2] }",
            "round 1 & `ratio` & beside",
        ),
        ("times = 2", "by_round = { ratio = [0.1, 'b'] }", "round 2 & prune"),
        ("times = 2", "by_round = { ratio = 0.1 }", "by_round.ratio 0.1"),
        ("times = 2", "by_round = { ratio = { total = 1.5 } }", "by_round.ratio.total 1.5"),
        ("times = 2", "by_round = { ratio = { all = 0.5 } }", "by_round.ratio & total"),
        ("times = 2", "ratio = 0.2\nby_round = { steps = { total = 8 } }", "by_round.steps & list"),
        ("times = 2", "kind = 'repeat'", "duplicate key"),
    ] {
        refused(parse(&of(times, keys)), named);
    }
    let within = "[[stage]]\nkind = 'repeat'\ntimes = 2\n[[stage.stage]]\nkind = 'repeat'\n";
    refused(parse(within), "repeat stage within it");
    refused(parse("[[stage]]\nkind = 'repeat'\ntimes = 2\n"), "[[stage.stage]]");
    refused(parse("[[stage]]\nkind = 'fresh'\nround = 0\n"), "round 0");
    refused(
        Plan::new(
            &parse("[[stage]]\nkind = 'distil'\nteacher = 'before'\n")?,
            &Checkpoint::open(NANO)?,
        ),
        "stage.teacher & prune",
    );
    // What only the model tells.
    let parent = Checkpoint::open(NANO)?;
    let recipe = parse(&of("times = 2", "widths = ['ffn']\nby_round = { ratio = [0.5, 1.5] }"))?;
    refused(Plan::new(&recipe, &parent), "round 2 (prune), stage.ratio");
    // A cut of a cut in which nothing goes is said.
    let twice = "[[stage]]\nkind = 'prune'\nratio = 0.5\nof_first = true\n".repeat(2);
    let plan = Plan::new(&parse(&twice)?, &parent)?;
    let said = "stage 2 (prune): 0.5 of the recipe's model has gone before";
    assert!(plan.warnings.iter().any(|text| text.contains(said)), "{:?}", plan.warnings);
    Ok(())
}

/// A run tells of each round; each training leaves its curve and its lines.
fn figures_by_round() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let recipe = format!(
        "model = '{NANO}'
        [[stage]]\nkind = 'repeat'\ntimes = 2
        [[stage.stage]]\nkind = 'prune'\nwidths = ['ffn']\nmultiple = 1\nby_round = {{ ratio = {{ total = 0.5 }} }}
        [[stage.stage]]\nkind = 'distil'\nlength = 32\nbatch = 2\nevaluate_every = 2\nby_round = {{ steps = [3, 4] }}
        [evaluate]\nctx = 64\nmax_tokens = 256\n[export]\nformats = ['packed']\n"
    );
    std::fs::write(folder.path().join("r.toml"), recipe)?;
    let run = succeeds(&folder, "compress r.toml --out out")?;
    assert!(run.out.contains("prune, round 1") && run.out.contains("tokens trained"), "{run}");
    let out = folder.path().join("out");
    let manifest = read_json(out.join("manifest.json"))?;
    let stages = manifest["stages"].as_array().ok_or("stages")?;
    let rounds: Vec<_> = stages.iter().map(|stage| stage["round"].as_u64()).collect();
    assert_eq!(rounds, [1, 1, 2, 2].map(Some));
    for (stage, steps, name) in [(1, 3, "training"), (3, 4, "04-distil.training")] {
        let learned = &stages[stage]["learned"];
        assert_eq!(learned["tokens"], steps * 2 * 32, "{learned}");
        let account = read_json(out.join(format!("{name}.json")))?;
        let looks = account["looks"].as_array().ok_or("looks")?;
        assert_eq!(learned["held_out"], looks[looks.len() - 1]["loss"]);
        let lines = std::fs::read_to_string(out.join(format!("{name}.jsonl")))?;
        let lines: Vec<Value> =
            lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let has = |key: &str| lines.iter().filter(|line| line.get(key).is_some()).count();
        assert_eq!((has("loss"), has("held_out")), (steps as usize, looks.len()));
        let order: Vec<_> = lines.iter().map(|line| line["step"].as_u64()).collect();
        assert!(order.is_sorted() && order[0] == Some(0), "{order:?}");
        let curve = std::fs::read_to_string(out.join(format!("{name}.svg")))?;
        assert!(curve.starts_with("<svg") && !curve.contains("NaN"), "{curve}");
        assert_eq!(curve.matches("<circle").count(), looks.len());
    }
    let dry = lopper(&folder, "compress r.toml --out dry --dry-run --device cpu")?;
    assert!(dry.out.contains("4 distil, round 2"), "{dry}");
    Ok(())
}

/// What stood before the last cut is a teacher: where nothing went from it, nothing is to be learned.
fn earlier_teacher() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let tuned = "[[stage]]\nkind = 'fresh'\nffn = 32\n[[stage]]\nkind = 'prune'\nmethod = 'magnitude'\nratio = 1e-6\n";
    let distil = |teacher: &str| {
        format!(
            "model = '{NANO}'\n{tuned}[[stage]]\nkind = 'distil'\n{teacher}\nlength = 32\nbatch = 2\nsteps = 1\nheld_out = 0\n[export]\nformats = ['packed']\n"
        )
    };
    let loss = |name: &str, teacher: &str| -> Result<f64, Failed> {
        std::fs::write(folder.path().join("r.toml"), distil(teacher))?;
        succeeds(&folder, &format!("compress r.toml --out {name}"))?;
        let account = read_json(folder.path().join(name).join("training.json"))?;
        Ok(account["steps"][0]["loss"].as_f64().ok_or("a loss")?)
    };
    let (before, parent) = (loss("a", "teacher = 'before'")?, loss("b", "")?);
    assert!(before.abs() < 1e-4 && parent > 0.1, "{before} and {parent}");
    Ok(())
}

/// A mean of neighbours leaves a line as it is, but where it ends; at the ends it is that of fewer.
fn smooth_curves() -> Result<(), Failed> {
    let line: Vec<f64> = (0..10).map(f64::from).collect();
    let means = lopper::plot::smoothed(&line, 2);
    assert_eq!(means, [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 7.5, 8.0]);
    assert!(lopper::plot::smoothed(&[], 3).is_empty());
    Ok(())
}
