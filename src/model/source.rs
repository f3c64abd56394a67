//! Where a pass over layers finds weights: on the device all along, or copied there one block at a time, so that a model larger
//! than the device's memory can be run, and run back.

use std::borrow::Cow;

use super::checkpoint::Weights;
use super::load;
use super::resident::{Head, Model, embed, headless};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::families::Config;
use crate::graph::{BlockWeights, Pass};
use crate::kernels::matrix::Matrix;

/// Where a pass finds weights.
#[derive(Clone, Copy)]
pub enum WeightSource<'a> {
    /// In a model that is on its device as a whole.
    Resident(&'a Model),
    /// In a checkpoint: a block is on the device while it is in use.
    Streamed(&'a Device, &'a dyn Weights),
}

impl std::fmt::Debug for WeightSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WeightSource::Resident(_) => "Resident",
            WeightSource::Streamed(..) => "Streamed",
        })
    }
}

impl<'a> From<&'a Model> for WeightSource<'a> {
    fn from(model: &'a Model) -> Self {
        WeightSource::Resident(model)
    }
}

impl<'a> WeightSource<'a> {
    /// The configuration.
    pub fn config(&self) -> &'a Config {
        match self {
            WeightSource::Resident(model) => model.config(),
            WeightSource::Streamed(_, weights) => weights.config(),
        }
    }

    /// The residual stream of token ids, f32 (tokens, hidden).
    pub fn embed(&self, pass: &Pass<'_>, ids: &[u32]) -> Result<Tensor> {
        embed(pass, self.config(), &self.embedding()?, ids)
    }

    /// The table of the embedding.
    pub fn embedding(&self) -> Result<Matrix> {
        match self {
            WeightSource::Resident(model) => Ok(model.embedding.clone()),
            WeightSource::Streamed(device, weights) => load::embedding(device, *weights),
        }
    }

    /// A block's weights.
    pub fn block(&self, layer: usize) -> Result<Cow<'a, BlockWeights>> {
        match self {
            WeightSource::Resident(model) => Ok(Cow::Borrowed(&model.blocks[layer])),
            WeightSource::Streamed(device, weights) => {
                load::block(device, *weights, layer).map(Cow::Owned)
            }
        }
    }

    /// The final norm and the head.
    pub fn head(&self) -> Result<Head> {
        match self {
            WeightSource::Resident(model) => model.head_weights().cloned(),
            WeightSource::Streamed(_, weights) if !weights.config().has_head() => {
                Err(headless(weights.config()))
            }
            WeightSource::Streamed(device, weights) => {
                load::head(device, *weights, || self.embedding())
            }
        }
    }
}
