//! Low-rank factors beside frozen layers (LoRA, Hu et al. 2021, arXiv 2106.09685; beside quantized ones QLoRA, Dettmers et al.
//! 2023, arXiv 2305.14314): f32, whatever the layer is stored in.

use super::dense::Dense;
use super::parameter::Parameter;
use crate::device::Device;
use crate::error::Result;
use crate::formats::peft::Pair;
use crate::graph::{Adapter, Factor};
use crate::model::{Adapters, Model};
use crate::tensor::{DType, WeightFormat};

/// Puts the factors of a module beside its layer in the model. Returns what is learned: A and B.
pub fn adapt(
    device: &Device,
    model: &mut Model,
    adapters: &Adapters,
    pair: &Pair,
    dropout: f32,
) -> Result<[Box<dyn Parameter>; 2]> {
    let module = &pair.module;
    let (down, up) = (format!("{module}.lora_A"), format!("{module}.lora_B"));
    let dense = |name: &str, values: &[f32], size: (usize, usize)| {
        let format = WeightFormat::f32();
        Dense::new(device, &format!("{name}.weight"), values, size, DType::F32, format)
    };
    let a = dense(&down, &pair.a, (pair.rank, pair.inputs))?;
    let b = dense(&up, &pair.b, (pair.outputs, pair.rank))?;
    let adapter = Adapter {
        down: Factor { name: down, matrix: a.matrix(device)? },
        up: Factor { name: up, matrix: b.matrix(device)? },
        scale: adapters.config.scale_of(module) as f32,
        dropout,
    };
    model.adapt(module, adapter);
    Ok([Box::new(a), Box::new(b)])
}
