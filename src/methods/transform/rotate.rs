//! Rotations that are folded into weights (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 4, stage 1; SpinQuant, Liu et al.
//! 2024, arXiv 2405.16406, R1 and R2, not learned).
//!
//! The residual stream: gains of norms go into what reads them, what writes the stream is multiplied by R, what reads it by Rᵗ on
//! its other side, as in [`crate::methods::prune::slice`], of which this is the case where no direction goes. A head that was the
//! embedding becomes a matrix of its own: the final norm's gains are in it, which do not commute with R. (Only where they all are
//! one number could it stay what it was; trained models have no such, and a plan knows no gains.)
//!
//! Heads: each head of values is multiplied by another rotation, and what the output projection reads of every query head that
//! attends with it by the inverse. Attention only adds values up, so this is exact in every family; a bias of values is rotated
//! with them.
//!
//! The rotations that QuaRot adds while the model runs, of the feed-forward's input to down and of queries and keys, are not folded
//! into anything and are not done.

use rayon::prelude::*;

use super::Transformed;
use super::hadamard::Rotation;
use crate::device::{Device, Random};
use crate::error::{Error, Result};
use crate::graph::Slot;
use crate::methods::prune::slice::{Basis, Sliced, is_norm, is_rotated, obstacle};
use crate::model::{Config, Role, TensorSpec, Weights};

/// What is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotates {
    /// The residual stream.
    pub stream: bool,
    /// The heads of values.
    pub heads: bool,
}

impl Rotates {
    /// Whether a tensor is changed.
    pub fn changes(self, spec: &TensorSpec) -> bool {
        (self.stream && (is_rotated(spec) || is_norm(spec.slot))) || (self.heads && of_heads(spec))
    }

    /// An error if a model of these tensors cannot be rotated so.
    pub fn check(self, config: &Config, specs: &[TensorSpec]) -> Result<()> {
        config.without_encoder("rotate", "its two stacks have streams of their own")?;
        match obstacle(config, specs).filter(|_| self.stream) {
            None => Ok(()),
            Some(why) => Err(Error::Unsupported {
                path: "rotate".into(),
                what: format!(
                    "the residual stream of a model of the family {}",
                    config.family.name
                ),
                why: format!("{why}; --only heads rotates the heads of values alone"),
            }),
        }
    }

    /// The rotations of a model of this configuration, of the stream and of heads.
    pub fn rotations(self, config: &Config, seed: u64) -> (Option<Rotation>, Option<Rotation>) {
        let of = |name: &str, width: usize| Rotation::random(width, Random::seed_of(seed, name));
        (
            self.stream.then(|| of("residual stream", config.hidden_size)),
            self.heads.then(|| of("heads", config.head_dim)),
        )
    }
}

/// Whether a tensor makes or reads heads of values.
fn of_heads(spec: &TensorSpec) -> bool {
    spec.slot == Slot::Value || (spec.slot == Slot::Output && spec.role == Role::Linear)
}

/// A model that is rotated.
pub struct Rotated<'a> {
    parent: &'a dyn Weights,
    rotates: Rotates,
    stream: Option<Sliced<'a>>,
    heads: Option<Rotation>,
}

impl std::fmt::Debug for Rotated<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rotated").field("rotates", &self.rotates).finish_non_exhaustive()
    }
}

impl<'a> Rotated<'a> {
    /// `parent` so changed, by rotations that a seed draws: products on the host, the same bits on every device. An error if it
    /// cannot be.
    pub fn new(
        parent: &'a dyn Weights,
        device: &'a Device,
        rotates: Rotates,
        seed: u64,
    ) -> Result<Self> {
        rotates.check(parent.config(), parent.specs())?;
        let (stream, heads) = rotates.rotations(parent.config(), seed);
        let sliced = |rotation| Sliced::new(parent, device, vec![Basis::rotation(rotation)]);
        let stream = stream.map(sliced);
        Ok(Self { parent, rotates, stream: stream.transpose()?, heads })
    }
}

impl Transformed for Rotated<'_> {
    fn parent(&self) -> &dyn Weights {
        self.parent
    }

    fn config(&self) -> &Config {
        self.stream.as_ref().map_or(self.parent.config(), Weights::config)
    }

    fn specs(&self) -> &[TensorSpec] {
        self.stream.as_ref().map_or(self.parent.specs(), Weights::specs)
    }

    fn whole<'s>(&'s self, spec: &'s TensorSpec) -> &'s TensorSpec {
        self.stream.as_ref().map_or(spec, |stream| stream.whole(spec))
    }

    fn may_change(&self, spec: &TensorSpec) -> bool {
        self.rotates.changes(spec)
    }

    fn exact(&self, spec: &TensorSpec) -> Result<Option<Vec<f32>>> {
        if !self.may_change(spec) {
            return Ok(None);
        }
        let mut values = match &self.stream {
            Some(stream) => stream.exact(spec)?.to_f32(),
            None => self.parent.load(spec)?.to_f32(),
        };
        if let Some(rotation) = self.heads.as_ref().filter(|_| of_heads(spec)) {
            match (spec.slot, spec.role) {
                (Slot::Value, Role::Linear) => rotate_rows(&mut values, spec.columns, rotation),
                _ => rotation.apply_each(&mut values),
            }
        }
        Ok(Some(values))
    }
}

/// R v for every column v of as many rows as the rotation is wide.
fn rotate_rows(values: &mut [f32], columns: usize, rotation: &Rotation) {
    values.par_chunks_exact_mut((rotation.width() * columns).max(1)).for_each(|head| {
        let mut v = vec![0.0; rotation.width()];
        for column in 0..columns {
            for (row, v) in v.iter_mut().enumerate() {
                *v = f64::from(head[row * columns + column]);
            }
            rotation.apply(&mut v);
            for (row, v) in v.iter().enumerate() {
                head[row * columns + column] = *v as f32;
            }
        }
    });
}
