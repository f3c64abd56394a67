//! Minitron (Muralidharan et al. 2024, arXiv 2407.14679, section 2; as NVIDIA's Model-Optimizer computes it): importance from a
//! forward pass alone.
//!
//! Of an activation X (sequences, positions, channels) a channel's magnitude in a sequence is the mean of |X| over the positions,
//! and its score the root of the sum over sequences of these squared. Feed-forward channels are scored at the input of the down
//! projection, heads at that of the output projection, by the L2 norm over a head's channels, and the residual stream's columns
//! at every norm's output that feeds products, the last norm's too, whose scores are added up. (NVIDIA's code looks at the two
//! norms of each block only.) A block's score is one less the mean cosine of the stream before and after it.

use super::score::AT_ONCE;
use crate::error::{Error, Result};
use crate::families::module_name;
use crate::graph::Slot;
use crate::interrupt;
use crate::methods::calibration::Rows;
use crate::model::{Config, Group, Pass, PrunableDim, WeightSource};
use crate::walk::{BlockSums, Kind, Statistics, Through, Walk};

/// The statistics that importance is made of.
pub const KINDS: [Kind; 2] = [Kind::SequenceMagnitudes, Kind::Cosine];

/// How much everything that can be cut of a model matters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    /// Feed-forward channels of each block.
    pub channels: Vec<Vec<f32>>,
    /// Query heads of each block.
    pub heads: Vec<Vec<f32>>,
    /// Columns of the residual stream.
    pub hidden: Vec<f64>,
    /// Blocks.
    pub depth: Vec<f32>,
}

impl Importance {
    /// That of a model over some rows. `progress` is told of blocks done and to do.
    pub fn of(
        source: WeightSource<'_>,
        pass: &Pass<'_>,
        rows: &Rows,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let (config, length) = (source.config(), rows.length());
        let why = "tokens of its two stacks are no sequences of one length";
        config.without_encoder("minitron", why)?;
        if config.experts.is_some() {
            return Err(Error::Unsupported {
                path: "minitron".into(),
                what: format!("importance of a model of the family {}", config.family.name),
                why: "tokens of an expert are no sequences, of which it takes means".into(),
            });
        }
        let mut walk = Walk::new(source, *pass, &rows.ids, rows.samples, AT_ONCE)?;
        let mut found = Self::default();
        while let Some(step) = walk.next_block()? {
            let layer = step.layer();
            progress(layer, config.layers());
            interrupt::check()?;
            let mut statistics = Statistics::new(pass.device, &KINDS, length);
            step.advance(Through::Parent, Some(&mut statistics))?;
            let sums = statistics.read(|slot| module_name(config, layer, slot))?;
            found.add_block(config, &sums)?;
        }
        let mut statistics = Statistics::new(pass.device, &KINDS[..1], length);
        walk.observe_head(&mut statistics)?;
        found.add_head(&statistics.read(|_| "the head".into())?)?;
        Ok(found)
    }

    /// Takes up the next block's statistics, of a model of this configuration.
    pub fn add_block(&mut self, config: &Config, sums: &BlockSums) -> Result<()> {
        let layer = self.depth.len();
        let heads = config.blocks[layer].heads;
        let squares = magnitudes(sums, Slot::Output)?;
        let norm =
            |squares: &[f32]| squares.iter().map(|s| f64::from(*s)).sum::<f64>().sqrt() as f32;
        self.heads.push(squares.chunks(squares.len() / heads).map(norm).collect());
        self.channels.push(magnitudes(sums, Slot::Down)?.iter().map(|s| s.sqrt()).collect());
        for slot in [Slot::Query, Slot::Gate] {
            self.add_hidden(magnitudes(sums, slot)?);
        }
        let cosine = sums.mean_cosine().ok_or_else(|| lacking(Kind::Cosine, None))?;
        self.depth.push((1.0 - cosine) as f32);
        Ok(())
    }

    /// Takes up those of the head's input.
    pub fn add_head(&mut self, sums: &BlockSums) -> Result<()> {
        self.add_hidden(magnitudes(sums, Slot::Head)?);
        Ok(())
    }

    fn add_hidden(&mut self, squares: &[f32]) {
        self.hidden.resize(squares.len(), 0.0);
        for (sum, square) in self.hidden.iter_mut().zip(squares) {
            *sum += f64::from(*square).sqrt();
        }
    }

    /// The scores of a group's units. Key-value heads have the L2 norm of their query heads'.
    pub fn units(&self, group: &Group) -> Vec<f32> {
        let layer = group.layer.unwrap_or(0);
        match group.width {
            PrunableDim::FeedForward => self.channels[layer].clone(),
            PrunableDim::Head => self.heads[layer].clone(),
            PrunableDim::KvGroup => {
                let heads = &self.heads[layer];
                let norm = |heads: &[f32]| heads.iter().map(|h| h * h).sum::<f32>().sqrt();
                heads.chunks(heads.len() / group.units).map(norm).collect()
            }
            PrunableDim::Hidden => self.hidden.iter().map(|score| *score as f32).collect(),
            PrunableDim::Layers => self.depth.clone(),
        }
    }
}

/// The sums of squared magnitudes of an input of a block.
fn magnitudes(sums: &BlockSums, slot: Slot) -> Result<&[f32]> {
    let kind = Kind::SequenceMagnitudes;
    sums.sum(slot, kind).ok_or_else(|| lacking(kind, Some(slot)))
}

fn lacking(kind: Kind, slot: Option<Slot>) -> Error {
    Error::Argument {
        argument: "statistics".into(),
        expected: match slot {
            Some(slot) => format!("{} of the input of {slot:?}", kind.name()),
            None => format!("{} of each block", kind.name()),
        },
        found: "none".into(),
    }
}
