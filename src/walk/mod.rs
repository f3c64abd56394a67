//! The walk through a model: one block on the device at a time, all calibration tokens through it before the next one. A block's
//! weights may be replaced between looking at its inputs and going on, so that the next block sees what the compressed ones
//! before it make of the text (as GPTQ, SparseGPT and Wanda calibrate), or what the parent made of it.
//!
//! Evaluation runs the same blocks on the same graph: what is observed here is what is computed there.

mod statistic;
pub mod stored;

pub use statistic::{BlockSums, InputSums, Kind, Statistics, cosines};

use std::borrow::Cow;

use crate::device::Tensor;
use crate::error::{Error, Result};
use crate::graph::{BlockWeights, KeyValueCache, Paired, PairedRows, Pass, Slot};
use crate::interrupt;
use crate::kernels::copy::cast::scaled;
use crate::kernels::matrix::Matrix;
use crate::model::{Cache, WeightSource, embed, lay_out, run_block};
use crate::tensor::{DType, Packed};

/// A walk through a model's blocks with some sequences of tokens.
#[derive(Debug)]
pub struct Walk<'a> {
    source: WeightSource<'a>,
    pass: Pass<'a>,
    /// The residual stream of each microbatch, f32 (tokens, hidden).
    streams: Vec<Tensor>,
    /// The parts of each one's rows, of a model with an encoder.
    paired: Vec<Option<PairedRows>>,
    /// One for each size of microbatch: sequences, and the cache of one layer.
    caches: Vec<(usize, Cache)>,
    /// Tokens of a sequence.
    length: usize,
    layer: usize,
}

/// The block that a walk has reached.
#[derive(Debug)]
pub struct Step<'w, 'a> {
    walk: &'w mut Walk<'a>,
    parent: Cow<'a, BlockWeights>,
    replaced: Option<BlockWeights>,
}

/// Which weights the streams go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The weight that replaced the parent's, if any.
    Replaced,
    /// The parent's.
    Parent,
}

/// Who is shown what goes through a block, a microbatch at a time.
pub trait Observer {
    /// The input of a linear layer, (tokens, input features), as its product takes it.
    fn input(&mut self, slot: Slot, x: &Tensor) -> Result<()>;

    /// Whether [`Observer::output`] is to be called: it takes a copy of the stream.
    fn wants_output(&self) -> bool {
        false
    }

    /// The residual stream before and after the block, f32 (tokens, hidden).
    fn output(&mut self, _before: &Tensor, _after: &Tensor) -> Result<()> {
        Ok(())
    }
}

/// An observer of inputs only.
impl<F: FnMut(Slot, &Tensor) -> Result<()>> Observer for F {
    fn input(&mut self, slot: Slot, x: &Tensor) -> Result<()> {
        self(slot, x)
    }
}

impl<'a> Walk<'a> {
    /// A walk with `ids`, `sequences` rows of one length; about `tokens` tokens go through a block at a time, at least one
    /// sequence.
    pub fn new(
        source: WeightSource<'a>,
        pass: Pass<'a>,
        ids: &[u32],
        sequences: usize,
        tokens: usize,
    ) -> Result<Self> {
        let length = ids.len() / sequences.max(1);
        if length == 0 || length * sequences != ids.len() {
            return Err(Error::Argument {
                argument: "tokens".into(),
                expected: "rows of one length, of a token or more".into(),
                found: format!("{} tokens in {sequences} rows", ids.len()),
            });
        }
        let at_once = (tokens / length).clamp(1, sequences);
        let config = source.config();
        let table = source.embedding()?;
        let (mut streams, mut caches) = (Vec::new(), Vec::<(usize, Cache)>::new());
        let (rows, mut paired) = (lay_out(config, ids, sequences)?, Vec::new());
        for first in (0..sequences).step_by(at_once) {
            let count = at_once.min(sequences - first);
            let ids = &rows.ids[first * length..(first + count) * length];
            let parts = rows.paired.as_ref();
            let upload = parts.map(|parts| parts.upload(pass.device, first..first + count));
            paired.push(upload.transpose()?);
            streams.push(embed(&pass, config, &table, ids)?);
            if !caches.iter().any(|(size, _)| *size == count) {
                let cache = Cache::single_layer(pass.device, config, count, length, pass.compute)?;
                caches.push((count, cache));
            }
        }
        Ok(Self { source, pass, streams, paired, caches, length, layer: 0 })
    }

    /// The next block, with its weights on the device; `None` after the last.
    pub fn next_block(&mut self) -> Result<Option<Step<'_, 'a>>> {
        interrupt::check()?;
        if self.layer == self.source.config().layers() {
            return Ok(None);
        }
        Ok(Some(Step { parent: self.source.block(self.layer)?, replaced: None, walk: self }))
    }

    /// Shows what goes into the head, as the linear layer [`Slot::Head`]: after the last block.
    pub fn observe_head(&self, observer: &mut dyn Observer) -> Result<()> {
        let head = self.source.head()?;
        for stream in &self.streams {
            interrupt::check()?;
            observer.input(Slot::Head, &head.norm(&self.pass, stream)?)?;
        }
        Ok(())
    }

    /// Tokens of a sequence.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The streams, one a microbatch: what the next block reads.
    pub fn streams(&self) -> &[Tensor] {
        &self.streams
    }

    /// Puts what `change` makes of them in the streams' place, of the same shape, between two blocks.
    pub fn change(&mut self, change: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<()> {
        for stream in &mut self.streams {
            interrupt::check()?;
            let changed = change(stream)?;
            assert_eq!(changed.shape(), stream.shape(), "streams keep their shape");
            *stream = changed;
        }
        Ok(())
    }

    /// The streams themselves, after the last block.
    pub fn into_streams(self) -> Vec<Tensor> {
        self.streams
    }
}

impl Step<'_, '_> {
    /// Its number.
    pub fn layer(&self) -> usize {
        self.walk.layer
    }

    /// Its linear layers.
    pub fn linears(&self) -> Vec<Slot> {
        self.parent.linears().map(|(slot, _)| slot).collect()
    }

    /// Puts a weight in place of a linear layer's, (output features, input features) as the parent's; its bias stays.
    pub fn replace(&mut self, slot: Slot, weight: &Packed) -> Result<()> {
        let old = self.parent.linear(slot);
        let (rows, columns) = (old.weight.rows(), old.weight.columns());
        if (weight.rows, weight.columns) != (rows, columns) {
            return Err(Error::Argument {
                argument: format!("a weight in place of {}", old.name),
                expected: format!("({rows}, {columns})"),
                found: format!("({}, {})", weight.rows, weight.columns),
            });
        }
        let mut new = old.clone();
        new.weight = Matrix::upload(self.walk.pass.device, weight, &old.name)?;
        let parent = &self.parent;
        let replaced = self.replaced.get_or_insert_with(|| parent.as_ref().clone());
        replaced.set_linear(slot, new);
        Ok(())
    }

    /// The parent's weights.
    pub fn block(&self) -> &BlockWeights {
        &self.parent
    }

    /// Puts other weights in place of all of the block's, of the same shapes where these have some.
    pub fn replace_all(&mut self, block: BlockWeights) {
        self.replaced = Some(block);
    }

    /// Shows what goes through the block, and leaves the streams where they are.
    pub fn observe(&mut self, through: Through, observer: &mut dyn Observer) -> Result<()> {
        for index in 0..self.walk.streams.len() {
            self.observe_one(index, through, observer)?;
        }
        Ok(())
    }

    /// Microbatches that go through the block one after the other.
    pub fn microbatches(&self) -> usize {
        self.walk.streams.len()
    }

    /// [`Step::observe`] for one microbatch: what two walks make of the same tokens can be seen side by side.
    pub fn observe_one(
        &mut self,
        index: usize,
        through: Through,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let x = copied(&self.walk.pass, &self.walk.streams[index])?;
        self.run(index, through, &x, Some(observer))
    }

    /// Takes the streams through the block, and shows what goes through it.
    pub fn advance(self, through: Through, mut observer: Option<&mut dyn Observer>) -> Result<()> {
        for index in 0..self.walk.streams.len() {
            let x = self.walk.streams[index].clone();
            match &mut observer {
                Some(observer) => self.run(index, through, &x, Some(&mut **observer))?,
                None => self.run(index, through, &x, None)?,
            }
        }
        self.walk.layer += 1;
        Ok(())
    }

    fn run(
        &self,
        index: usize,
        through: Through,
        x: &Tensor,
        observer: Option<&mut (dyn Observer + '_)>,
    ) -> Result<()> {
        let walk = &*self.walk;
        let block = match (through, &self.replaced) {
            (Through::Replaced, Some(replaced)) => replaced,
            _ => self.parent.as_ref(),
        };
        let sequences = x.shape()[0] / walk.length;
        let cache = walk.caches.iter().find(|(size, _)| *size == sequences);
        let (_, cache) = cache.expect("every size of microbatch has a cache");
        let paired = walk.paired[index].as_ref().map(|rows| Paired { rows, begins: true });
        let cache = KeyValueCache { paired, ..cache.layer_for(walk.layer, walk.length) };
        let (pass, config) = (&walk.pass, walk.source.config());
        let Some(observer) = observer else {
            return run_block(pass, config, walk.layer, block, x, cache, None);
        };
        let before = match observer.wants_output() {
            true => Some(copied(pass, x)?),
            false => None,
        };
        let mut tap = |slot: Slot, input: &Tensor| observer.input(slot, input);
        run_block(pass, config, walk.layer, block, x, cache, Some(&mut tap))?;
        match before {
            Some(before) => observer.output(&before, x),
            None => Ok(()),
        }
    }
}

fn copied(pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
    scaled(pass.device, x, 1.0, DType::F32)
}
