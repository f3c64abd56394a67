//! Low-rank factors beside frozen layers (LoRA, Hu et al. 2021, arXiv 2106.09685; beside quantized ones QLoRA, Dettmers et al.
//! 2023, arXiv 2305.14314): f32, whatever the layer is stored in.

use std::path::Path;

use super::dense::Dense;
use super::parameter::Parameter;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::families::is_of_block;
use crate::formats::peft::Pair;
use crate::graph::{Adapter, Factor};
use crate::model::{Adapters, Model};
use crate::tensor::{BLOCK, DType, WeightFormat};

/// Factors have as many rows, or columns, of zeros behind those of their rank as make whole blocks: then products of them, there
/// and back, are like those of any layer. What is zero in both stays zero: neither is given a gradient by the other.
fn padded(rank: usize) -> usize {
    rank.next_multiple_of(BLOCK)
}

/// Puts the factors of a module beside its layer in the model. Returns what is learned: A and B, each with zeros up to whole
/// blocks.
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
    let wide = padded(pair.rank);
    let mut a = pair.a.clone();
    a.resize(wide * pair.inputs, 0.0);
    let row = |row: &[f32]| [row, &vec![0.0; wide - pair.rank]].concat();
    let b: Vec<f32> = pair.b.chunks_exact(pair.rank).flat_map(row).collect();
    let a = dense(&down, &a, (wide, pair.inputs))?.of_count(pair.a.len());
    let b = dense(&up, &b, (pair.outputs, wide))?.of_count(pair.b.len());
    let adapter = Adapter {
        down: Factor { name: down, matrix: a.matrix(device)? },
        up: Factor { name: up, matrix: b.matrix(device)? },
        scale: adapters.config.scale_of(module) as f32,
        dropout,
    };
    model.adapt(module, adapter);
    Ok([Box::new(a), Box::new(b)])
}

/// Refuses adapters of anything but the linear layers of blocks, where the graphs have them.
pub fn expect_of_blocks(adapters: &Adapters, folder: &Path) -> Result<()> {
    let outside = adapters.pairs.iter().find(|pair| !is_of_block(&pair.module));
    outside.map_or(Ok(()), |pair| {
        Err(Error::Unsupported {
            path: folder.into(),
            what: format!("the adapter of `{}`, not merged", pair.module),
            why: "the blocks' linear layers have adapters beside them".into(),
        })
    })
}

/// Puts what was learned of a module's factors, as [`adapt`] returned them, into its pair.
pub fn learned(device: &Device, [a, b]: [&dyn Parameter; 2], pair: &mut Pair) -> Result<()> {
    let values = |parameter: &dyn Parameter| -> Result<Vec<f32>> {
        Ok(device.read(&parameter.learned()[0].values)?.to_f32())
    };
    pair.a = values(a)?;
    pair.a.truncate(pair.rank * pair.inputs);
    let rank = pair.rank;
    pair.b = values(b)?.chunks_exact(padded(rank)).flat_map(|row| &row[..rank]).copied().collect();
    Ok(())
}
