//! A model's parts as passes over its layers need them: held on the device all along, or copied there one by one, so that
//! a model larger than the device's memory can be run and run back.

use super::checkpoint::Weights;
use super::config::Config;
use super::linear::{Linear, Pass, load};
use super::llama::{Block, Llama, embed, head_of, norm};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::kernels::matrix::Matrix;

/// Where a pass finds weights.
#[derive(Clone, Copy)]
pub enum Layers<'a> {
    /// In a model that is on its device as a whole.
    Held(&'a Llama),
    /// In a checkpoint: a block is on the device while it is in use.
    Streamed(&'a Device, &'a dyn Weights),
}

impl std::fmt::Debug for Layers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Layers::Held(_) => "Held",
            Layers::Streamed(..) => "Streamed",
        })
    }
}

/// What turns the residual stream behind the last block into logits.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) norm: Tensor,
    pub(super) linear: Linear,
}

impl<'a> Layers<'a> {
    /// The configuration.
    pub fn config(&self) -> &'a Config {
        match self {
            Layers::Held(model) => model.config(),
            Layers::Streamed(_, weights) => weights.config(),
        }
    }

    /// The residual stream of token ids, f32 (tokens, hidden).
    pub(super) fn embed(&self, pass: &Pass<'_>, ids: &[u32]) -> Result<Tensor> {
        match self {
            Layers::Held(model) => model.embed(pass, ids),
            Layers::Streamed(..) => embed(pass, &self.embedding()?, ids),
        }
    }

    /// The table of the embedding.
    pub(super) fn embedding(&self) -> Result<Matrix> {
        match self {
            Layers::Held(model) => Ok(model.embedding.clone()),
            Layers::Streamed(device, weights) => {
                let name = "model.embed_tokens";
                let table = load(*weights, &format!("{name}.weight"))?;
                Matrix::upload(device, &table, name)
            }
        }
    }

    /// A block's weights.
    pub(super) fn block(&self, layer: usize) -> Result<Block> {
        match self {
            Layers::Held(model) => Ok(model.blocks[layer].clone()),
            Layers::Streamed(device, weights) => Block::load(device, *weights, layer),
        }
    }

    /// The final norm and the head.
    pub(super) fn head(&self) -> Result<Head> {
        match self {
            Layers::Held(model) => Ok(Head {
                norm: model.norm.clone(),
                linear: model.head.clone(),
            }),
            Layers::Streamed(device, weights) => {
                let norm = norm(device, *weights, "model.norm.weight")?;
                let linear = head_of(device, *weights, || self.embedding())?;
                Ok(Head { norm, linear })
            }
        }
    }
}
