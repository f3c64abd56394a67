//! A model that another one is to be like.

use std::cell::RefCell;

use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::graph::Pass;
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::model::{Cache, Model};

/// A teacher on its device, and what it makes of a batch.
#[derive(Debug)]
pub struct TeacherModel {
    model: Model,
    /// The head's inputs of the batch at hand, (tokens, hidden).
    normed: RefCell<Option<Tensor>>,
}

impl TeacherModel {
    /// A teacher for a student of this vocabulary.
    pub fn new(model: Model, vocabulary: usize) -> Result<Self> {
        let own = model.config().vocab_size;
        if own != vocabulary {
            return Err(Error::Argument {
                argument: "teacher".into(),
                expected: format!("a model with the student's vocabulary of {vocabulary}"),
                found: format!("one of {own}"),
            });
        }
        Ok(Self { model, normed: RefCell::new(None) })
    }

    /// Runs it over a batch of `sequences` rows, up to the head.
    pub fn read(&self, pass: &Pass<'_>, ids: &[u32], sequences: usize) -> Result<()> {
        let (device, config) = (pass.device, self.model.config());
        let length = ids.len() / sequences;
        let dtype = pass.compute.activation;
        // What the batch before left may be given up now.
        *self.normed.borrow_mut() = None;
        let cache = Cache::single_layer(device, config, sequences, length, dtype)?;
        *self.normed.borrow_mut() = Some(self.model.hidden(pass, ids, &cache)?);
        Ok(())
    }

    /// Its logits of some of the batch's tokens, f32 (tokens, vocabulary).
    pub fn logits(&self, pass: &Pass<'_>, tokens: &[u32]) -> Result<Tensor> {
        let normed = self.normed.borrow();
        let normed = normed.as_ref().expect("a batch is read before its logits are asked for");
        let consecutive = tokens.windows(2).all(|pair| pair[1] == pair[0] + 1);
        if let (true, Some(first)) = (consecutive, tokens.first()) {
            let first = *first as usize;
            return self.model.head(pass, normed, first..first + tokens.len());
        }
        let picked = picked(pass.device, normed, tokens)?;
        self.model.head(pass, &picked, 0..tokens.len())
    }
}

/// Some rows of a tensor, in a new one.
fn picked(device: &Device, x: &Tensor, places: &[u32]) -> Result<Tensor> {
    let width = x.len() / x.shape()[0];
    let part = device.allocate(x.dtype(), &[places.len(), width], "rows of a teacher")?;
    let pairs: Vec<_> = places.iter().copied().zip(0..).collect();
    rows(device, x, &part, width, &Rows::upload(device, &pairs)?)?;
    Ok(part)
}
