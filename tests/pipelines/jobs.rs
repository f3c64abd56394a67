//! Whole jobs on small models: what goes in comes out, on every device, in every format, or nothing does.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::data::read_text;
use lopper::device::{Device, HostTensor, Random};
use lopper::error::Error;
use lopper::formats::gguf;
use lopper::gpu::{Options as GpuOptions, Tier};
use lopper::kernels::activation::Activation;
use lopper::kernels::gate::glu::glu;
use lopper::measure::{Convention, perplexity};
use lopper::methods::quantize::rtn::rtn;
use lopper::methods::quantize::{Grid, Scheme};
use lopper::model::{Checkpoint, Compute, Pass, Role, Sampling, Weights, export_gguf, generate};
use lopper::plan::Plan;
use lopper::recipe::{EMBEDDED, Recipe};
use lopper::run::{Manifest, Options, Place, Target, run};
use lopper::tensor::{DType, Packed, WHOLE_ROW};

use crate::machine::{device, on_each};
use crate::models::{load, pass, speech_perplexity};
use crate::numbers::{Within, assert_close};
use crate::program::{NANO, TINY};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("pipelines":
        artifact_opens_in_every_format, a_grid_reproduces_itself, batches_do_not_matter,
        interrupted_run_leaves_nothing, permuted_rows_return;
        gpu: checked_evaluation, checked_sees_unwritten, short_submits_are_measured, budget_is_kept);
    trials.extend(on_each("pipelines::every_scheme", every_scheme));
    trials.extend(on_each("pipelines::cache_equals_whole_pass", cache_equals_whole_pass));
    trials
}

/// The embedded recipe with fewer tokens.
fn recipe() -> Result<Recipe, Failed> {
    let mut recipe = Recipe::parse(Path::new("embedded recipe"), EMBEDDED)?;
    recipe.evaluate.as_mut().ok_or("the embedded recipe measures")?.max_tokens = Some(1024);
    Ok(recipe)
}

fn run_recipe(recipe: &Recipe, parent: &Checkpoint, out: &Path) -> Result<Manifest, Failed> {
    let plan = Plan::new(recipe, parent)?;
    let text = recipe.to_toml();
    let options = Options {
        recipe_text: &text,
        place: Place { out, force: false, resume: false, keep_work: false },
        compute: Compute::F32,
        calibration: Compute::F32,
        training: Compute::F32,
        budget: None,
    };
    let cpu = &Device::Cpu;
    Ok(run(recipe, &plan, parent, cpu, options, &mut |_| {})?)
}

/// Perplexity of 1024 tokens of the 2026 speech.
fn measure(device: &Device, weights: &dyn Weights, activation: DType) -> Result<f64, Failed> {
    let compute = Compute::with(activation);
    speech_perplexity(&Pass { device, compute }, weights, 1024)
}

fn artifact_opens_in_every_format() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("artifact");
    let parent = Checkpoint::open(TINY)?;
    let manifest = run_recipe(&recipe()?, &parent, &out)?;
    let figures = &manifest.stages[0].figures;
    let inside = figures.perplexity.as_ref().ok_or("a figure")?.value;
    let path = |name: &str| out.join(name).to_string_lossy().into_owned();
    // Codes and scales are kept bit for bit, so the figure is the same number.
    for name in ["", "packed", "model.gguf"] {
        let figure = measure(&Device::Cpu, &Checkpoint::open(&path(name))?, DType::F32)?;
        assert!(figure == inside, "{name}: {figure} is not {inside}");
    }
    let rounded = measure(&Device::Cpu, &Checkpoint::open(&path("hf"))?, DType::F32)?;
    assert_close("hf", &[rounded], &[inside], Within::Each(1e-3));
    let ids = |model: &str| -> Result<Vec<u32>, Failed> {
        Ok(Checkpoint::open(model)?
            .tokenizer()?
            .encode("Naïve café: 12345 tokens.\n\n  Two spaces", true)?)
    };
    for name in ["packed", "model.gguf", "hf"] {
        assert_eq!(ids(&path(name))?, ids(TINY)?, "{name}");
    }
    Ok(())
}

/// Quantizing what already lies on a grid changes nothing: the second error is 0, and the codes are the same words.
fn a_grid_reproduces_itself() -> Result<(), Failed> {
    let weight = random_matrix(24, 256);
    // A zero point is rounded, so its group may leave an outermost code unused, and the second range is then smaller.
    for grid in [Grid::AbsmaxSymmetric, Grid::SignedMax, Grid::FloatMin] {
        for bits in [2, 4, 5, 8] {
            let scheme = Scheme { grid, bits, group_size: 32, ty: None };
            let once = rtn(&Device::Cpu, &weight, scheme, "w")?;
            let twice = rtn(&Device::Cpu, &once, scheme, "w")?;
            let same = once.to_f32() == twice.to_f32();
            assert!(same, "{} at {bits} bits", grid.name());
        }
    }
    // Through a file: GGUF's blocks hold these formats exactly.
    let q4_1 = rtn(
        &Device::Cpu,
        &weight,
        Scheme { grid: Grid::FloatMin, bits: 4, group_size: 32, ty: None },
        "w",
    )?;
    let (ty, bytes) = gguf::pack(&q4_1).ok_or("Q4_1 holds a float minimum of groups of 32")?;
    let back = gguf::unpack(ty, &bytes, 24, 256).ok_or("Q4_1 has a decoder")?;
    assert!(back == q4_1, "Q4_1 changed the matrix");
    Ok(())
}

fn random_matrix(rows: usize, columns: usize) -> Packed {
    let mut random = Random::new(21);
    let values: Vec<f32> =
        (0..rows * columns).map(|_| random.value() + random.value() * 0.3).collect();
    Packed::from_f32(&values, rows, columns)
}

/// Every grid, width and group size: the error is within half a step, and a device gives the CPU's words.
fn every_scheme(device: &Device) -> Result<(), Failed> {
    let weight = random_matrix(6, 160);
    let values = weight.to_f32();
    for grid in Grid::ALL {
        for bits in 1..=8 {
            for group_size in [16, 64, 128, WHOLE_ROW] {
                let scheme = Scheme { grid, bits, group_size, ty: None };
                if grid == Grid::AbsmaxSymmetric && bits == 1 {
                    assert!(scheme.format().is_err(), "one symmetric bit has no step");
                    continue;
                }
                let what = format!("{} {bits} bits, groups of {group_size}", grid.name());
                let packed = rtn(device, &weight, scheme, "w")?;
                let same = packed == rtn(&Device::Cpu, &weight, scheme, "w")?;
                assert!(same, "{what}: not the CPU's words");
                let step = largest_step(&values, bits, group_size, grid);
                let error = values
                    .iter()
                    .zip(packed.to_f32())
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                // The signed maximum leaves one step at the far end; f16 scales and offsets add their own rounding.
                let allowed = if grid == Grid::SignedMax { 1.01 } else { 0.51 } * step + 2e-3;
                assert!(error <= allowed, "{what}: error {error}, step {step}");
            }
        }
    }
    Ok(())
}

/// An upper bound of the steps between codes.
fn largest_step(values: &[f32], bits: u32, group_size: u32, grid: Grid) -> f32 {
    let columns = 160;
    let group = if group_size == WHOLE_ROW { columns } else { group_size as usize };
    let groups = values.chunks(columns).flat_map(|row| row.chunks(group));
    groups
        .map(|group| {
            let most = group.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let low = group.iter().copied().fold(f32::INFINITY, f32::min);
            let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            match grid {
                Grid::AbsmaxSymmetric => most / ((1 << (bits - 1)) - 1) as f32,
                Grid::SignedMax => most / (1 << (bits - 1)) as f32,
                _ => (high - low) / ((1 << bits) - 1) as f32,
            }
        })
        .fold(0.0, f32::max)
}

fn checked_evaluation() -> Result<(), Failed> {
    for (tier, activation) in [(Tier::Baseline, DType::F32), (Tier::F16, DType::F16)] {
        let runner =
            crate::machine::open(GpuOptions { tier, checked: true, ..GpuOptions::default() })?;
        if activation == DType::F16 && !runner.gpu().capabilities().f16 {
            continue;
        }
        let nano = Checkpoint::open(NANO)?;
        let checked = measure(&Device::Checked(runner), &nano, activation)?;
        let cpu = measure(&Device::Cpu, &nano, DType::F32)?;
        assert_close(tier.name(), &[checked], &[cpu], Within::Each(1e-3));
    }
    Ok(())
}

/// A kernel that writes nothing, where the right result stands already.
fn checked_sees_unwritten() -> Result<(), Failed> {
    let gpu = crate::machine::open(GpuOptions::default())?;
    let runner = gpu.with_source("shared/store_four", String::new());
    let device = Device::Checked(runner);
    let zeros = device.upload(&HostTensor::zeros(DType::F32, &[64]), "zeros")?;
    let found = glu(&device, &zeros, &zeros, Activation::Silu, DType::F32);
    assert!(matches!(found, Err(Error::Divergence { .. })), "{:?}", found.err());
    Ok(())
}

/// The device's speed is learnt from submits that end early because something is read back, too.
fn short_submits_are_measured() -> Result<(), Failed> {
    let device = device(GpuOptions::default())?;
    if !device.capabilities().timestamps {
        return Ok(());
    }
    let before = device.call_limit();
    let gate = device.upload(&HostTensor::zeros(DType::F32, &[1 << 20]), "zeros")?;
    for _ in 0..4 {
        device.read(&glu(&device, &gate, &gate, Activation::Silu, DType::F32)?)?;
    }
    assert!(device.call_limit() != before, "nothing was learnt");
    Ok(())
}

fn budget_is_kept() -> Result<(), Failed> {
    let small = device(GpuOptions { budget: Some(1 << 20), ..GpuOptions::default() })?;
    match load(&small, &Checkpoint::open(TINY)?).map(|_| "fits") {
        Err(Error::OutOfMemory { budget, used, .. }) if budget == 1 << 20 && used <= budget => {}
        other => panic!("a budget of 1 MiB: {other:?}"),
    }
    let budget = 24 << 20;
    let enough = device(GpuOptions { budget: Some(budget), ..GpuOptions::default() })?;
    measure(&enough, &Checkpoint::open(NANO)?, DType::F32)?;
    let peak = enough.gpu().ok_or("a GPU")?.memory().1;
    assert!(peak > 0 && peak <= budget, "peak {peak} of {budget}");
    Ok(())
}

/// Token by token through the cache gives the tokens that whole passes give.
fn cache_equals_whole_pass(device: &Device) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(NANO)?;
    let model = load(device, &checkpoint)?;
    let pass = pass(device);
    let prompt = checkpoint.tokenizer()?.encode("The American people", true)?;
    let mut seen = Vec::new();
    let generation = generate(
        &model,
        &pass,
        &prompt,
        12,
        Sampling::GREEDY,
        |_| false,
        |token| {
            seen.push(token);
            Ok(true)
        },
    )?;
    let mut text = prompt.clone();
    for token in &generation.tokens {
        let (_, logits) = model.trace(&pass, &text, 1, false)?;
        let last = &logits.view().to_f32()[(text.len() - 1) * model.config().vocab_size..];
        let best =
            (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).ok_or("a vocabulary")?;
        assert!(
            best as u32 == *token,
            "after {} tokens: {token} from the cache, {best} without",
            text.len()
        );
        text.push(*token);
    }
    assert!(seen == generation.tokens && seen.len() == 12, "not every token was told");
    Ok(())
}

/// A window's losses do not depend on which windows share its pass.
fn batches_do_not_matter() -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(NANO)?;
    let tokens = checkpoint.tokenizer()?.encode(&read_text("embedded:heldout-older")?, false)?;
    let model = load(&Device::Cpu, &checkpoint)?;
    let pass = pass(&Device::Cpu);
    let figure = |tokens: &[u32]| -> Result<(f64, f64), Failed> {
        let all = Convention::AllButFirst;
        let p = perplexity(&model, &pass, tokens, 128, all, None, |_, _| Ok(()))?;
        let scored = p.tokens_scored as f64;
        Ok((p.value.ln() * scored, scored))
    };
    // 20 windows are 16 and 4 in two passes; alone, each is a pass of its own.
    let (all, count) = figure(&tokens[..20 * 128])?;
    let mut one_by_one = (0.0, 0.0);
    for window in tokens[..20 * 128].chunks(128) {
        let (sum, scored) = figure(window)?;
        one_by_one = (one_by_one.0 + sum, one_by_one.1 + scored);
    }
    let close =
        (all - one_by_one.0).abs() <= 1e-6 * all && count == one_by_one.1 && count == 20.0 * 127.0;
    assert!(close, "{all} of {count}, {one_by_one:?}");
    Ok(())
}

fn interrupted_run_leaves_nothing() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("artifact");
    let parent = Checkpoint::open(NANO)?;
    let target = Target { path: &out, force: false, folder: true, model: parent.path() };
    let result: lopper::error::Result<()> = target.write(|path| {
        std::fs::create_dir(path).map_err(Error::write(path))?;
        let (path, tokenizer) = (path.join("model.gguf"), parent.tokenizer()?);
        export_gguf(&path, &parent, &parent, Some(tokenizer.stored()))?;
        Err(Error::Interrupted)
    });
    let left: Vec<_> =
        std::fs::read_dir(folder.path())?.flatten().map(|entry| entry.path()).collect();
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// GGUF's order of rows and back is the identity, for matrices and biases.
fn permuted_rows_return() -> Result<(), Failed> {
    let checkpoint = Checkpoint::open("assets/fixtures/biased")?;
    let mut seen = 0;
    for spec in checkpoint.specs() {
        let (Some(to), Some(back)) =
            (spec.gguf_rows(spec.features()), spec.hf_rows(spec.features()))
        else {
            continue;
        };
        let identity = (0..to.len()).all(|row| to[row] == row);
        let returns = (0..to.len()).all(|row| back[to[row]] == row);
        assert!(returns && !identity, "{}: {to:?}", spec.name);
        seen += 1;
        assert!(matches!(spec.role, Role::Linear | Role::Bias), "only projections are permuted");
    }
    assert!(seen == 8, "{seen} tensors of two layers are permuted");
    Ok(())
}
