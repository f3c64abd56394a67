//! A model that another one is to be like, on its device or by what was stored of it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::hidden::Pairs;
use super::stored_teacher::StoredTeacher;
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::graph::Pass;
use crate::kernels::copy::cast::scaled;
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::kernels::select::top_tokens::top_tokens;
use crate::model::{Cache, Config, Model, Taught};
use crate::tensor::DType;

/// A teacher, and what it makes of a batch.
#[derive(Debug)]
pub struct TeacherModel {
    source: Source,
    /// Only so many of the likeliest tokens count; `None`: all.
    top: Option<usize>,
    /// Blocks whose outputs are kept.
    layers: Vec<usize>,
    batch: RefCell<Read>,
}

/// Where a teacher's answers come from.
#[derive(Debug)]
enum Source {
    Model(Box<Model>),
    Stored(StoredTeacher),
}

/// What a teacher has of the batch at hand.
#[derive(Debug, Default)]
struct Read {
    /// The head's inputs, (tokens, hidden).
    normed: Option<Tensor>,
    /// Outputs of blocks, f32 (tokens, hidden), by block.
    states: BTreeMap<usize, Tensor>,
    /// The batch's rows among all, where answers are stored by them.
    rows: Vec<usize>,
}

impl TeacherModel {
    /// A teacher for a student of this vocabulary.
    pub fn new(model: Model, vocabulary: usize) -> Result<Self> {
        model.config().foretells("teacher")?;
        let own = model.config().vocab_size;
        if own != vocabulary {
            return Err(Error::Argument {
                argument: "teacher".into(),
                expected: format!("a model with the student's vocabulary of {vocabulary}"),
                found: format!("one of {own}"),
            });
        }
        let source = Source::Model(Box::new(model));
        Ok(Self { source, top: None, layers: Vec::new(), batch: RefCell::default() })
    }

    /// A teacher whose likeliest tokens were stored.
    pub fn stored(teacher: StoredTeacher) -> Self {
        let top = Some(teacher.top());
        let source = Source::Stored(teacher);
        Self { source, top, layers: Vec::new(), batch: RefCell::default() }
    }

    /// The same, of whose tokens only the likeliest count.
    pub fn with_top(self, top: Option<usize>) -> Self {
        let most = self.config().map(|config| config.vocab_size);
        Self { top: top.map(|top| top.min(most.unwrap_or(top))), ..self }
    }

    /// The same, whose hidden states these pairs ask for are kept.
    pub fn with_states(self, pairs: &Pairs) -> Self {
        Self { layers: pairs.pairs().iter().map(|(_, layer)| *layer).collect(), ..self }
    }

    /// The shape of its model, if that is at hand.
    pub fn config(&self) -> Option<&Config> {
        match &self.source {
            Source::Model(model) => Some(model.config()),
            Source::Stored(_) => None,
        }
    }

    /// Whether it has to be told which rows of all a batch is of.
    pub fn wants_rows(&self) -> bool {
        matches!(self.source, Source::Stored(_))
    }

    /// Tokens whose logits are made at once.
    pub fn rows_at_once(&self, device: &Device) -> usize {
        match &self.source {
            Source::Model(model) => model.head_rows(device),
            Source::Stored(_) => usize::MAX,
        }
    }

    /// Runs it over a batch of `sequences` rows, up to the head. `rows`: which ones these are of all, where it wants them.
    pub fn read(
        &self,
        pass: &Pass<'_>,
        ids: &[u32],
        sequences: usize,
        rows: &[usize],
    ) -> Result<()> {
        // What the batch before left may be given up now.
        *self.batch.borrow_mut() = Read::default();
        let mut read = Read { rows: rows.to_vec(), ..Read::default() };
        if let Source::Model(model) = &self.source {
            let device = pass.device;
            let length = ids.len() / sequences;
            let cache =
                Cache::single_layer(device, model.config(), sequences, length, pass.compute)?;
            let states = &mut read.states;
            let normed = model.hidden_through(pass, ids, &cache, &mut |layer, x| {
                if self.layers.contains(&layer) {
                    states.insert(layer, scaled(device, x, 1.0, DType::F32)?);
                }
                Ok(())
            })?;
            read.normed = Some(normed);
        }
        *self.batch.borrow_mut() = read;
        Ok(())
    }

    /// What it says of some of the batch's tokens.
    pub fn says(&self, pass: &Pass<'_>, tokens: &[u32]) -> Result<Taught> {
        if let Source::Stored(stored) = &self.source {
            return stored.says(pass.device, &self.batch.borrow().rows, tokens);
        }
        let logits = self.logits(pass, tokens)?;
        match self.top {
            None => Ok(Taught::Logits(logits)),
            Some(top) => {
                let (tokens, logs) = top_tokens(pass.device, &logits, top)?;
                Ok(Taught::Top(tokens, logs))
            }
        }
    }

    /// Its logits of some of the batch's tokens, f32 (tokens, vocabulary). It is a model on its device.
    pub fn logits(&self, pass: &Pass<'_>, tokens: &[u32]) -> Result<Tensor> {
        let batch = self.batch.borrow();
        let Source::Model(model) = &self.source else {
            unreachable!("a stored teacher has no logits");
        };
        let normed = batch.normed.as_ref();
        let normed = normed.expect("a batch is read before its logits are asked for");
        let consecutive = tokens.windows(2).all(|pair| pair[1] == pair[0] + 1);
        if let (true, Some(first)) = (consecutive, tokens.first()) {
            let first = *first as usize;
            return model.head(pass, normed, first..first + tokens.len());
        }
        let picked = picked(pass.device, normed, tokens)?;
        model.head(pass, &picked, 0..tokens.len())
    }

    /// The output of one of the blocks that are kept, of some consecutive tokens of the batch, f32 (tokens, hidden).
    pub fn state(
        &self,
        device: &Device,
        layer: usize,
        tokens: std::ops::Range<usize>,
    ) -> Result<Tensor> {
        let batch = self.batch.borrow();
        let state = batch.states.get(&layer).expect("a state that was asked for is kept");
        if tokens.len() == state.shape()[0] {
            return Ok(state.clone());
        }
        picked(device, state, &tokens.map(|token| token as u32).collect::<Vec<_>>())
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
