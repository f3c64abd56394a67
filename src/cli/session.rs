//! Opening the device that the flags ask for.

use std::collections::BTreeMap;
use std::path::Path;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};

use super::output::{Output, bytes};
use super::{ComputeChoice, DeviceChoice, Global};
use crate::device::{Device, Failure, Runner, check_case, complaint_of, fragment};
use crate::disk;
use crate::error::{Error, Result};
use crate::gpu::{Adapter, Gpu, Options, Selector, Tier, Timed, choose};
use crate::interrupt;
use crate::kernels::TABLE;
use crate::kernels::kv::{CACHE_TYPES, CacheType};
use crate::kernels::matmul::coop;
use crate::kernels::matmul::product::{MatmulShape, ProductChoices, WeightForm, Winners};
use crate::kernels::matmul::tuned;
use crate::measure::speed::tune::{Tuned, tune_all};
use crate::model::{
    Adapters, Checkpoint, Compute, Config, ExpertUses, Model, Outline, StreamedExperts,
    WeightSource, Weights,
};
use crate::tensor::DType;
use crate::train::lora::{adapt, expect_of_blocks};

/// How keys and values are kept, in commands that run a model.
#[derive(Debug, clap::Args)]
pub(super) struct CacheArguments {
    /// Keep the keys and values of attention in this type, the smaller the more is lost; without it, in that of activations
    #[arg(long, value_name = "TYPE", value_parser = cache_types())]
    pub(super) cache_type: Option<&'static CacheType>,
}

fn cache_types() -> impl TypedValueParser<Value = &'static CacheType> {
    let names = PossibleValuesParser::new(CACHE_TYPES.iter().map(|ty| ty.name));
    names.map(|name| CacheType::named(&name).expect("a possible value is a row's name"))
}

/// Opens a model, and says what is odd about its files.
pub(super) fn open_model(name: &str, output: &Output) -> Result<Checkpoint> {
    let model = Checkpoint::open(name)?;
    for note in model.notes() {
        output.note(format!("warning: {}: {note}", model.path().display()));
    }
    Ok(model)
}

/// Opens a model that foretells tokens, which an argument names.
pub(super) fn open_language_model(
    argument: &str,
    name: &str,
    output: &Output,
) -> Result<Checkpoint> {
    let model = open_model(name, output)?;
    model.config().foretells(argument)?;
    Ok(model)
}

/// Opens the device, saying in one line where `auto` landed if that may surprise.
pub(super) fn open_device(global: &Global, output: &Output) -> Result<Device> {
    if global.device == DeviceChoice::Cpu {
        only_multiplies(global)?;
        return Ok(Device::Cpu);
    }
    let asked = global.selector()?;
    let named = asked.name.is_some() || asked.backend.is_some();
    let selector = asked.or_environment()?;
    let named = named || selector.name.is_some() || selector.backend.is_some();
    let adapter = match (choose(&selector), global.device) {
        (Ok(adapter), _) => adapter,
        (Err(error), DeviceChoice::Auto) if !named => {
            only_multiplies(global)?;
            output.note(format!("note: {error}; using the CPU"));
            return Ok(Device::Cpu);
        }
        (Err(error), _) => return Err(error),
    };
    if global.device == DeviceChoice::Auto
        && !named
        && adapter.info.device_type == wgpu::DeviceType::Cpu
    {
        only_multiplies(global)?;
        let name = &adapter.info.name;
        output.note(format!(
            "note: the only adapter is software ({name}); using the CPU (--device gpu to use it)"
        ));
        return Ok(Device::Cpu);
    }
    let checked = global.device == DeviceChoice::Checked;
    let runner = open_gpu(global, adapter, checked, output)?;
    tracing::info!("{:?}, tier {}", runner.gpu(), runner.gpu().tier().name());
    Ok(if checked { Device::Checked(runner) } else { Device::Gpu(runner) })
}

/// The CPU device has one way to compute a product.
fn only_multiplies(global: &Global) -> Result<()> {
    if !global.engine.takes_planes() {
        return Ok(());
    }
    Err(Error::Argument {
        argument: "--engine lut / bitserial".into(),
        expected: "a GPU (--device gpu takes a software one too)".into(),
        found: "the CPU, which multiplies".into(),
    })
}

/// The user's WGSL and the name of the kernel or shared fragment that it replaces. Only together with `--kernel`.
pub(super) fn replacement(
    kernel: Option<&str>,
    shader: Option<&Path>,
) -> Result<Option<(String, String)>> {
    let Some(path) = shader else {
        return Ok(None);
    };
    let text = disk::read_string(path, disk::SETTINGS)?;
    // The text of one case begins with its kernel.
    let name = kernel.and_then(|text| text.split(" [").next()).unwrap_or_default();
    let known = TABLE.iter().any(|kernel| kernel.name == name)
        || name.strip_prefix("shared/").is_some_and(|name| fragment(name).is_some());
    if !known {
        return Err(Error::Argument {
            argument: "--kernel".into(),
            expected: "with --shader, the name of one kernel, or shared/NAME for a fragment".into(),
            found: name.into(),
        });
    }
    for kernel in TABLE.iter().copied() {
        let mut variants = (kernel.variants)();
        variants.retain(|variant| match name.strip_prefix("shared/") {
            Some(shared) => kernel.imports(variant, shared),
            None => kernel.name == name,
        });
        if let Some(complaint) = complaint_of(kernel, name, &text, &variants) {
            let place = complaint.place;
            let place = place.map_or(String::new(), |(l, c)| format!("line {l}, column {c}: "));
            return Err(Error::Malformed {
                path: path.into(),
                what: "WGSL".into(),
                offset: None,
                expected: format!("a shader that can stand for {name}"),
                found: format!("{place}{}", complaint.reason),
            });
        }
    }
    Ok(Some((name.into(), text)))
}

fn open_gpu(global: &Global, adapter: Adapter, checked: bool, output: &Output) -> Result<Runner> {
    let half = global.compute == ComputeChoice::F16;
    if half && !adapter.capabilities.f16 {
        return Err(Error::Limit {
            kernel: "--compute f16".into(),
            variant: adapter.info.name.clone(),
            needs: "f16 in shaders".into(),
            has: "none; use --compute f32".into(),
        });
    }
    // Matrix units multiply f16, and change the memory model of every shader on their device.
    let tier = match global.compute {
        ComputeChoice::F16 | ComputeChoice::I8 => adapter.tier(),
        ComputeChoice::Auto | ComputeChoice::F32 => Tier::F16,
    };
    let options = Options {
        tier,
        checked,
        budget: global.vram_budget,
        profile: match global.verbose {
            0 | 1 => Timed::Submits,
            2 => Timed::Kernels,
            _ => Timed::Sizes,
        },
        ..Options::default()
    };
    let name = adapter.info.name.clone();
    let runner = Gpu::open(adapter, options.clone()).map(Runner::new)?;
    let runner = match trusted(&runner) {
        Ok(()) => runner,
        Err(failure) => {
            output.note(format!(
                "note: matrix units of {name} are left out, a check of them failed: {failure}"
            ));
            let backend = Some(runner.gpu().adapter().info.backend);
            let name = global.adapter.clone().or(Some(name));
            let selector = Selector { name, backend };
            drop(runner);
            let options = Options { tier: Tier::F16, ..options };
            Gpu::open(choose(&selector)?, options).map(Runner::new)?
        }
    };
    let runner = runner.keeping(ProductChoices::new(global.engine.into()));
    if global.no_autotune {
        return Ok(runner);
    }
    ProductChoices::of(&runner).learn(known_winners(runner.gpu().adapter(), output));
    Ok(runner)
}

/// The winners that tuning kept for a device; where they cannot be read, none, and a warning.
pub(super) fn known_winners(adapter: &Adapter, output: &Output) -> Winners {
    tuned::load(adapter).unwrap_or_else(|error| {
        output.note(format!("warning: nothing that was tuned is used: {error}"));
        Winners::new()
    })
}

/// A model for passes over windows of a text.
pub(super) enum Loaded<'a> {
    /// On the device as a whole.
    Resident(Box<Model>),
    /// Copied there block by block.
    Streamed(&'a Device, &'a Checkpoint),
}

impl Loaded<'_> {
    /// Its weights.
    pub(super) fn source(&self) -> WeightSource<'_> {
        match self {
            Loaded::Resident(model) => WeightSource::Resident(model),
            Loaded::Streamed(device, checkpoint) => WeightSource::Streamed(device, *checkpoint),
        }
    }
}

/// A model for passes over windows of `ctx` tokens, one of so many on the device at a time: whole, or where `--vram-budget` has
/// no room for that block by block.
pub(super) fn load_for_windows<'a>(
    global: &Global,
    device: &'a Device,
    checkpoint: &'a Checkpoint,
    compute: Compute,
    (ctx, models): (usize, u64),
    output: &Output,
) -> Result<Loaded<'a>> {
    let budget = global.vram_budget.filter(|_| device.gpu().is_some());
    let outline = Outline::of(checkpoint)?;
    let (resident, streamed) = outline.evaluation_bytes(ctx);
    let cached = outline.evaluation_cache_bytes(ctx, compute)?;
    let (resident, streamed) = (resident.saturating_add(cached), streamed.saturating_add(cached));
    match budget {
        Some(budget) if resident > budget / models => {
            let beside = resident - outline.bytes();
            if let Ok(Some(room)) = experts_room(Some(budget / models), &outline, beside) {
                let model = load_streaming(device, checkpoint, room, output)?;
                return Ok(Loaded::Resident(Box::new(model)));
            }
            if streamed > budget / models {
                return Err(Error::OutOfMemory {
                    what: "an evaluation with a block's weights at a time".into(),
                    bytes: streamed * models,
                    used: 0,
                    budget,
                });
            }
            output.note(format!(
                "note: {} of weights and activations exceed the budget; blocks go through the device one at a time",
                bytes(resident)
            ));
            Ok(Loaded::Streamed(device, checkpoint))
        }
        _ => load_model(global, device, checkpoint, compute, &[ctx], output)
            .map(|model| Loaded::Resident(Box::new(model))),
    }
}

/// The adapter in a folder, for a model that it fits.
pub(super) fn read_adapter(
    folder: Option<&Path>,
    checkpoint: &Checkpoint,
    heads: bool,
) -> Result<Option<Adapters>> {
    let Some(folder) = folder else { return Ok(None) };
    let adapters = Adapters::read(folder)?;
    adapters.check(checkpoint.config())?;
    expect_of_blocks(&adapters, folder)?;
    if let Some(saved) = adapters.saved.first().filter(|_| !heads) {
        return Err(Error::Argument {
            argument: "--lora".into(),
            expected: "an adapter of a model that foretells tokens; eval --task takes others"
                .into(),
            found: format!("one with a head that scores labels, {}", saved.name),
        });
    }
    Ok(Some(adapters))
}

/// Puts an adapter beside a model's layers, not merged into them.
pub(super) fn put_adapter(
    device: &Device,
    model: &mut Model,
    checkpoint: &Checkpoint,
    adapters: Option<&Adapters>,
) -> Result<()> {
    let Some(adapters) = adapters else { return Ok(()) };
    if let Some(headed) = adapters.headed(checkpoint)? {
        model.set_head(device, &headed)?;
    }
    for pair in &adapters.pairs {
        if model.tensor(&format!("{}.weight", pair.module)).is_none() {
            return Err(Error::Argument {
                argument: "--lora".into(),
                expected: "layers that are on the device, as experts are within the budget".into(),
                found: pair.module.clone(),
            });
        }
        adapt(device, model, adapters, pair, 0.0)?;
    }
    Ok(())
}

/// Bytes of device memory that experts may stay in, where a budget has no room for all weights and so much beside them.
fn experts_room(budget: Option<u64>, outline: &Outline, beside: u64) -> Result<Option<u64>> {
    let whole = outline.bytes().saturating_add(beside);
    let Some(budget) = budget.filter(|budget| whole > *budget) else { return Ok(None) };
    if outline.config.experts.is_none() {
        return Ok(None);
    }
    // The one at hand, and another's memory that is not free yet.
    let least = whole - outline.bytes_of_experts() + 2 * outline.bytes_of_an_expert();
    match budget.checked_sub(least) {
        Some(room) => Ok(Some(room)),
        None => Err(Error::OutOfMemory {
            what: "a model with one expert at a time on the device".into(),
            bytes: least,
            used: 0,
            budget,
        }),
    }
}

/// A context that memory is kept for where experts take what is left.
const KEPT_CONTEXT: usize = 4096;

/// Bytes of the key-value cache of a text as long as the model's context, or so much of it: twice, for caches that grow are copied.
fn text_bytes(config: &Config, compute: Compute) -> Result<u64> {
    let mut each = 0;
    for block in &config.blocks {
        let width = block.kv_heads * config.head_dim;
        each += compute.cache_type().bytes_per_token(width, config.head_dim)?;
    }
    Ok((2 * config.max_positions.min(KEPT_CONTEXT) as u64).saturating_mul(each))
}

/// A model whose experts are copied to the device when tokens go there, and may stay in so many bytes of it.
fn load_streaming(
    device: &Device,
    checkpoint: &Checkpoint,
    room: u64,
    output: &Output,
) -> Result<Model> {
    let again = Checkpoint::open(&checkpoint.path().to_string_lossy())?;
    let experts = StreamedExperts::new(again, room)?;
    let config = checkpoint.config();
    let all = config.layers() * config.experts.map_or(0, |experts| experts.count);
    output.note(format!(
        "note: the weights exceed the budget; experts go to the device when tokens do, {} of {all} stay there",
        experts.places()
    ));
    Model::load_streaming(device, checkpoint, experts, |done, total| {
        output.progress("loading", done, total);
        interrupt::check()
    })
}

/// How often experts that were asked for were on the device, of a model whose experts are streamed.
pub(super) fn experts_json(model: &Model) -> Option<Value> {
    let experts = model.streamed_experts()?;
    let ExpertUses { asked, held, copied } = experts.uses();
    let places = experts.places();
    Some(json!({ "asked": asked, "held": held, "copied_bytes": copied, "places": places }))
}

/// The same in words.
pub(super) fn tell_experts(model: &Model, output: &Output) {
    let Some(experts) = model.streamed_experts() else { return };
    let ExpertUses { asked, held, copied } = experts.uses();
    let share = 100.0 * held as f64 / asked.max(1) as f64;
    output.note(format!(
        "experts: {share:.1} % of {asked} were on the device, {} copied there",
        bytes(copied)
    ));
}

/// A model on the device; where `--vram-budget` has no room for its experts, those are copied there when tokens go to them. With `--autotune`, the products of passes of so many tokens that were never tuned are tuned first,
/// as far as the time goes, and the winners kept.
pub(super) fn load_model(
    global: &Global,
    device: &Device,
    checkpoint: &Checkpoint,
    compute: Compute,
    tokens: &[usize],
    output: &Output,
) -> Result<Model> {
    let engine = global.engine.into();
    let budget = global.vram_budget.filter(|_| device.gpu().is_some());
    let outline = Outline::of(checkpoint)?;
    let most = tokens.iter().copied().max().unwrap_or(1);
    let beside = outline.pass_bytes(most).saturating_add(text_bytes(checkpoint.config(), compute)?);
    let model = match experts_room(budget, &outline, beside)? {
        Some(room) => load_streaming(device, checkpoint, room, output)?,
        None => Model::load(device, checkpoint, |done, total| {
            output.progress("loading", done, total);
            interrupt::check()
        })?,
    };
    if global.engine.takes_planes() {
        let products = model.products(compute, engine, 1);
        let any = products.iter().any(|product| {
            let choices = product.candidates(device.capabilities());
            choices.iter().any(|choice| choice.weight() != WeightForm::Codes)
        });
        if !any {
            return Err(Error::Argument {
                argument: "--engine lut / bitserial".into(),
                expected:
                    "a model with weights of 1 to 4 bits on an even grid, in groups of 32 or more (or, by lookup, ternary ones in groups of 128 or more)"
                        .into(),
                found: "none such".into(),
            });
        }
    }
    let Some(runner) = device.runner() else {
        if global.autotune.is_some() {
            output.note("note: nothing to tune, the CPU has one way to multiply");
        }
        return Ok(model);
    };
    if global.autotune.is_some() && !runner.gpu().capabilities().timestamps {
        output.note("note: this adapter has no timestamps, nothing is tuned");
    } else if let Some(budget) = global.autotune {
        let known = ProductChoices::of(runner);
        let mut products: BTreeMap<String, MatmulShape> = BTreeMap::new();
        for product in tokens.iter().flat_map(|n| model.products(compute, known.engine(), *n)) {
            if known.winner(|| product.class()).is_none() {
                products.insert(product.class(), product);
            }
        }
        let products: Vec<_> = products.into_values().collect();
        let mut winners = Winners::new();
        let progress = |index, product: &MatmulShape| {
            output.progress(&format!("tuning {}", product.class()), index, products.len());
        };
        let found = |tuned: Tuned| {
            winners.insert(tuned.class, tuned.winner.0);
            Ok(())
        };
        let tuned = tune_all(runner, &products, budget, progress, found);
        if !products.is_empty() {
            output.note(format!(
                "tuned {} of {} classes of products",
                winners.len(),
                products.len()
            ));
        }
        if let Err(error) = tuned::store(runner.gpu().adapter(), winners.clone()) {
            output.note(format!("warning: what was tuned is not kept: {error}"));
        }
        tuned?;
        runner.gpu().forget_profile()?;
        known.learn(winners);
    }
    // Reading back the time of every submit would itself take time.
    runner.gpu().sample_times(global.verbose == 0);
    Ok(model)
}

/// Products by matrix units that are checked before a device with them is trusted: whole tiles and edges, in f16 and in
/// four bits.
fn trusted(runner: &Runner) -> std::result::Result<(), Failure> {
    if runner.gpu().capabilities().cooperative_matrix == 0 {
        return Ok(());
    }
    for variant in (coop::KERNEL.variants)() {
        let types = ["f16", "uint4m"];
        // The largest tile and the smallest: a driver takes its time to compile each.
        let asked = variant.weight.is_some_and(|weight| types.contains(&weight.name))
            && variant.output == DType::F32
            && [16, 128].contains(&coop::tile_tokens(&variant));
        if asked && variant.runs_on(runner.gpu().capabilities()) {
            for case in coop::KERNEL.checks(&variant).iter().take(2) {
                check_case(runner, &coop::KERNEL, &variant, case)?;
            }
        }
    }
    Ok(())
}

/// The GPU that the flags ask for, with everything it has, for `tune-device`.
pub(super) fn open_tuning(global: &Global, output: &Output) -> Result<Runner> {
    if global.device == DeviceChoice::Cpu {
        return Err(Error::Argument {
            argument: "--device".into(),
            expected: "a GPU: the CPU has one way to multiply".into(),
            found: "cpu".into(),
        });
    }
    let adapter = choose(&global.selector()?.or_environment()?)?;
    if !adapter.capabilities.timestamps {
        return Err(Error::Limit {
            kernel: "tune-device".into(),
            variant: adapter.info.name.clone(),
            needs: "timestamps".into(),
            has: "none".into(),
        });
    }
    let compute = if adapter.capabilities.f16 { ComputeChoice::F16 } else { ComputeChoice::F32 };
    let global = Global { compute, verbose: 0, no_autotune: true, ..global.clone() };
    open_gpu(&global, adapter, false, output)
}

/// The number type of forward passes. `auto` is f32; `i8` means integer products, with other activations in f16 where the device has it.
pub(super) fn compute(global: &Global, device: &Device) -> Result<Compute> {
    Ok(match global.compute {
        ComputeChoice::Auto | ComputeChoice::F32 => Compute::F32,
        ComputeChoice::F16 => Compute::F16,
        ComputeChoice::I8 => {
            let capabilities = device.capabilities();
            if !capabilities.integer_dot {
                return Err(Error::Limit {
                    kernel: "--compute i8".into(),
                    variant: device.name(),
                    needs: "integer products".into(),
                    has: "none; use --compute f32".into(),
                });
            }
            let base = if capabilities.f16 { Compute::F16 } else { Compute::F32 };
            Compute { activation_bytes: 1, ..base }
        }
    })
}

/// The number type of gradients and scores: f32 unless the user says otherwise, because they are compared with each other
/// and with files.
pub(super) fn calibration_compute(global: &Global, device: &Device) -> Result<Compute> {
    match global.compute {
        ComputeChoice::Auto => Ok(Compute::F32),
        _ => compute(global, device),
    }
}

/// With `-v`, says what the device did.
pub(super) fn report_device(
    global: &Global,
    device: &Device,
    output: &Output,
    wall: std::time::Duration,
) -> Result<()> {
    let (Some(gpu), true) = (device.gpu(), global.verbose > 0) else {
        return Ok(());
    };
    let profile = gpu.profile()?;
    let share = 100.0 * profile.seconds() / wall.as_secs_f64();
    output.note(format!(
        "device: {:.3} s in kernels of {:.3} s ({share:.0} %), {} dispatches in {} submits, peak memory {}",
        profile.seconds(),
        wall.as_secs_f64(),
        profile.dispatches,
        profile.submits,
        bytes(gpu.memory().1),
    ));
    if global.verbose > 1 {
        let mut kernels: Vec<_> = profile.by_kernel.iter().collect();
        kernels.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        for (kernel, (seconds, count)) in kernels {
            output.note(format!("  {kernel:27} {:9.3} ms in {count} dispatches", seconds * 1e3));
        }
    }
    Ok(())
}
