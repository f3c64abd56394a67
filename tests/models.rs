//! Models as tests run them: whole, and with weights changed on the way in.

use std::path::Path;

use libtest_mimic::Failed;
use lopper::data::read_text;
use lopper::device::Device;
use lopper::error::Result as Outcome;
use lopper::formats::safetensors::{NewTensor, Safetensors, write_folder};
use lopper::measure::{Convention, perplexity};
use lopper::methods::calibration::Rows;
use lopper::model::{Checkpoint, Compute, Config, Model, Pass, TensorSpec, Weights};
use lopper::stages::{Context, Stage};
use lopper::tensor::{DType, Packed, WeightFormat};
use serde_json::{Map as Object, Value};

use crate::program::TEXT;

/// A pass in f32.
pub fn pass(device: &Device) -> Pass<'_> {
    Pass { device, compute: Compute::F32 }
}

/// Runs a stage on some weights of a model, on the CPU, into a folder; what it left.
pub fn run_stage(
    parent: &Checkpoint,
    weights: &dyn Weights,
    stage: &dyn Stage,
    folder: &Path,
) -> Result<Checkpoint, Failed> {
    let rows = match stage.needs().calibration {
        Some(calibration) => Some(Rows::of_text(calibration, &parent.tokenizer()?)?),
        None => None,
    };
    run_stage_on((&Device::Cpu, rows.as_ref()), parent, weights, stage, folder)
}

/// Likewise on a device, calibrated on some rows.
pub fn run_stage_on(
    (device, rows): (&Device, Option<&Rows>),
    parent: &Checkpoint,
    weights: &dyn Weights,
    stage: &dyn Stage,
    folder: &Path,
) -> Result<Checkpoint, Failed> {
    std::fs::create_dir_all(folder)?;
    let others = stage.others();
    let others = others.iter().map(|name| Checkpoint::open(name)).collect::<Outcome<Vec<_>>>()?;
    let mut context = Context {
        parent,
        pass: pass(device),
        rows,
        statistics: None,
        examples: None,
        teacher: None,
        others: &others,
        training: Compute::F32,
        seed: 0,
        budget: None,
        folder,
        progress: &mut |_, _, _| {},
    };
    let config = stage.run(weights, &mut context)?;
    Ok(Checkpoint::open_stage(folder, config)?)
}

pub fn load(device: &Device, weights: &dyn Weights) -> Outcome<Model> {
    Model::load(device, weights, |_, _| Ok(()))
}

/// The logits of some sequences of equal length, in f32: (tokens, vocabulary).
pub fn logits(
    device: &Device,
    weights: &dyn Weights,
    ids: &[u32],
    sequences: usize,
) -> Result<Vec<f32>, Failed> {
    let (_, logits) = load(device, weights)?.trace(&pass(device), ids, sequences, false)?;
    Ok(logits.to_f32())
}

/// Perplexity of the first tokens of the 2026 speech, in windows of 256.
pub fn speech_perplexity(
    pass: &Pass<'_>,
    weights: &dyn Weights,
    tokens: usize,
) -> Result<f64, Failed> {
    let tokenizer = Checkpoint::open("embedded:tiny-llama")?.tokenizer()?;
    let mut ids = tokenizer.encode(&read_text(TEXT)?, false)?;
    ids.truncate(tokens);
    let model = load(pass.device, weights)?;
    let all = Convention::AllButFirst;
    let figure = perplexity(&model, pass, &ids, 256, all, None, |_, _| Ok(()))?;
    assert_eq!(figure.tokens_scored, tokens / 256 * 255, "tokens scored");
    Ok(figure.value)
}

/// What becomes of a tensor on the way in.
type Map<'a> = dyn Fn(&TensorSpec, Packed) -> Outcome<Packed> + Sync + 'a;

/// A model whose tensors are changed as they are loaded.
pub struct MapWeights<'a>(pub &'a dyn Weights, pub &'a Map<'a>);

impl Weights for MapWeights<'_> {
    fn config(&self) -> &Config {
        self.0.config()
    }
    fn specs(&self) -> &[TensorSpec] {
        self.0.specs()
    }
    fn load(&self, spec: &TensorSpec) -> Outcome<Packed> {
        (self.1)(spec, self.0.load(spec)?)
    }
    fn format(&self, spec: &TensorSpec) -> Outcome<WeightFormat> {
        self.0.format(spec)
    }
}

/// A tensor of a file: name, type, shape and bytes.
pub type Stored = (String, DType, Vec<usize>, Vec<u8>);

/// The configuration and the tensors of a Hugging Face folder.
pub fn read_folder(folder: &Path) -> Result<(Object<String, Value>, Vec<Stored>), Failed> {
    let config = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let file = Safetensors::open_folder(folder)?;
    let stored = |name: &str| {
        let tensor = file.get(name)?;
        let types = [DType::F32, DType::F16, DType::Bf16, DType::U32, DType::I64];
        let others = [DType::I32, DType::U8, DType::I8, DType::F8E4m3];
        let ty = types.into_iter().chain(others).find(|ty| ty.name() == tensor.ty.name())?;
        Some((name.to_string(), ty, tensor.shape.clone(), tensor.bytes().ok()?.into_owned()))
    };
    Ok((config, file.names().filter_map(stored).collect()))
}

/// Writes such a folder.
pub fn write_model(
    folder: &Path,
    config: &Object<String, Value>,
    tensors: &[Stored],
) -> Result<(), Failed> {
    std::fs::write(folder.join("config.json"), serde_json::to_vec(config)?)?;
    let new = |(name, dtype, shape, bytes): &Stored| {
        let bytes = bytes.clone();
        let data = Box::new(move || Ok(bytes.clone()));
        NewTensor { name: name.clone(), dtype: *dtype, shape: shape.clone(), data }
    };
    write_folder(folder, tensors.iter().map(new).collect(), 1 << 30)?;
    Ok(())
}

/// The model at a path.
pub fn checkpoint(path: &Path) -> Result<Checkpoint, Failed> {
    Ok(Checkpoint::open(&path.to_string_lossy())?)
}
