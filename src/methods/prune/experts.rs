//! Experts of a mixture that go, whole: in each layer those that matter least stay out, and the router loses their rows. A token
//! then goes to the largest of the logits that are left, with shares that add up to 1 again.
//!
//! Which matter least is found on a text, of the model as it is, by what its own tokens make of an expert e with shares g and
//! results f: how many tokens it gets (`usage`), the sum of g |f| over them (`gate-norm`), or their mean of it (`reap`: Lasby et
//! al. 2025, arXiv 2510.13999, equation 9, which asks what a token loses with an expert, however rarely it is asked).

use serde::{Deserialize, Serialize};

use crate::device::{Random, Tensor};
use crate::error::{Error, Result};
use crate::graph::{BlockWeights, Experts, Slot};
use crate::interrupt;
use crate::kernels::experts::route::route;
use crate::kernels::matmul::Destination;
use crate::kernels::score::{Form, rows};
use crate::methods::calibration::Rows;
use crate::model::{
    Config, CopyOf, Linear, Outline, Pass, TensorSpec, WeightSource, Weights, tensor_specs,
};
use crate::tensor::{DType, Packed, WeightFormat};
use crate::walk::{Observer, Through, Walk};

/// What says how much an expert matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ExpertScore {
    /// The tokens that go to it.
    Usage,
    /// The sum over them of its share times the length of its result.
    #[default]
    GateNorm,
    /// The mean over them of its share times the length of its result (REAP).
    Reap,
    /// Luck.
    Random,
}

impl ExpertScore {
    /// Whether it is found on a text.
    pub fn needs_text(self) -> bool {
        self != ExpertScore::Random
    }
}

/// What the tokens of a text made of an expert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertUse {
    /// Tokens that went to it.
    pub tokens: u64,
    /// The sum over them of its share times the length of its result.
    pub norms: f64,
}

impl ExpertUse {
    fn score(&self, by: ExpertScore) -> f64 {
        match by {
            ExpertScore::Usage => self.tokens as f64,
            ExpertScore::GateNorm => self.norms,
            ExpertScore::Reap if self.tokens > 0 => self.norms / self.tokens as f64,
            ExpertScore::Reap | ExpertScore::Random => 0.0,
        }
    }
}

/// Tokens that go through a block at a time.
const AT_ONCE: usize = 4096;

/// What the tokens of a text make of the experts of each block; `known` are those of the first blocks. `see` is given each block's
/// when it is found.
pub fn uses(
    source: WeightSource<'_>,
    pass: &Pass<'_>,
    text: &Rows,
    mut known: Vec<Vec<ExpertUse>>,
    see: &mut dyn FnMut(&[Vec<ExpertUse>]) -> Result<()>,
) -> Result<Vec<Vec<ExpertUse>>> {
    let Some(experts) = source.config().experts else { return Ok(known) };
    let mut walk = Walk::new(source, *pass, &text.ids, text.samples, AT_ONCE)?;
    while let Some(step) = walk.next_block()? {
        interrupt::check()?;
        if step.layer() < known.len() {
            step.advance(Through::Parent, None)?;
            continue;
        }
        let mut block = Watched {
            pass: *pass,
            block: step.block().clone(),
            experts,
            shares: Vec::new(),
            uses: vec![ExpertUse::default(); experts.count],
        };
        step.advance(Through::Parent, Some(&mut block))?;
        known.push(block.uses);
        see(&known)?;
    }
    Ok(known)
}

/// The experts of a block while tokens go through.
struct Watched<'a> {
    pass: Pass<'a>,
    block: BlockWeights,
    experts: Experts,
    /// Of each expert the shares of its tokens, in their order.
    shares: Vec<Vec<f32>>,
    uses: Vec<ExpertUse>,
}

impl Watched<'_> {
    /// A layer's result, f32 (tokens, output features).
    fn product(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let input = self.pass.input(x.clone(), linear.weight.columns());
        linear.apply(&self.pass, &input, Destination::New(DType::F32))
    }
}

impl Observer for Watched<'_> {
    fn input(&mut self, slot: Slot, x: &Tensor) -> Result<()> {
        let device = self.pass.device;
        match slot {
            Slot::Router => {
                let logits = self.product(self.block.linear(slot), x)?;
                let shares = device
                    .read(&route(device, &logits, self.experts.used, self.experts.normalized)?)?
                    .to_f32();
                let of = |expert: usize| -> Vec<f32> {
                    let column = shares.iter().skip(expert).step_by(self.experts.count);
                    column.copied().filter(|share| *share != 0.0).collect()
                };
                self.shares = (0..self.experts.count).map(of).collect();
            }
            Slot::ExpertDown(expert) => {
                let expert = usize::from(expert);
                let result = self.product(self.block.linear(slot), x)?;
                let tokens = result.shape()[0];
                let squares = device.allocate(DType::F32, &[tokens], "lengths")?;
                rows::rows(device, Form::L2, &result, None, None, &squares, false)?;
                let squares = device.read(&squares)?.to_f32();
                let shares = &self.shares[expert];
                assert_eq!(
                    shares.len(),
                    tokens,
                    "the router's logits are the same when computed twice"
                );
                let norm = |(square, share): (&f32, &f32)| f64::from(square.sqrt() * share);
                let norms: f64 = squares.iter().zip(shares).map(norm).sum();
                if !norms.is_finite() {
                    return Err(Error::NotFinite {
                        what: format!("results of {}", self.block.linear(slot).name),
                        found: norms.to_string(),
                    });
                }
                self.uses[expert].tokens += tokens as u64;
                self.uses[expert].norms += norms;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The experts of each block that stay, so many of them: those with the highest scores, of equal ones the first. `uses`: none where
/// luck decides, by `seed`.
pub fn kept(
    config: &Config,
    uses: &[Vec<ExpertUse>],
    (by, count): (ExpertScore, usize),
    seed: u64,
) -> Vec<Vec<usize>> {
    let all = config.experts.map_or(0, |experts| experts.count);
    let mut random = Random::new(Random::seed_of(seed, "experts"));
    let of_block = |layer: usize| {
        let scores: Vec<f64> = match by {
            ExpertScore::Random => (0..all).map(|_| f64::from(random.value())).collect(),
            by => uses[layer].iter().map(|one| one.score(by)).collect(),
        };
        let mut order: Vec<usize> = (0..all).collect();
        // The sort is stable.
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order.truncate(count);
        order.sort_unstable();
        order
    };
    (0..config.layers()).map(of_block).collect()
}

/// The configuration with so many experts a block.
pub fn left(config: &Config, count: usize) -> Config {
    let fewer = |experts: Experts| Experts { count, used: experts.used.min(count), ..experts };
    Config { experts: config.experts.map(fewer), ..config.clone() }
}

/// The outline of what is left of a model with so many experts a block: which ones stay only the run knows, and takes the first for
/// them here.
pub fn outline(model: &Outline, count: usize) -> Outline {
    let config = left(&model.config, count);
    let stays = |spec: &&TensorSpec| spec.slot.expert().is_none_or(|expert| expert < count);
    let specs = model.specs.iter().filter(stays).cloned().map(|spec| with_rows(spec, count));
    let kept = |place: &usize| stays(&&model.specs[*place]);
    let places: Vec<usize> = (0..model.specs.len()).filter(kept).collect();
    let copy = |place: &usize| {
        let copy = model.copies[*place].clone()?;
        // A router loses rows.
        let rows = if model.specs[*place].slot == Slot::Router { None } else { copy.rows };
        Some(CopyOf { rows, ..copy })
    };
    Outline {
        specs: specs.collect(),
        formats: places.iter().map(|place| model.formats[*place]).collect(),
        copies: places.iter().map(copy).collect(),
        config,
        ..model.clone()
    }
}

/// A router's spec with so many rows; others as they are.
fn with_rows(spec: TensorSpec, count: usize) -> TensorSpec {
    match spec.slot {
        Slot::Router => TensorSpec { rows: count, ..spec },
        _ => spec,
    }
}

/// A model with some of its experts only. What stays keeps its codes.
pub struct FewerExperts<'a> {
    parent: &'a dyn Weights,
    /// Of each block, in order.
    kept: Vec<Vec<usize>>,
    config: Config,
    specs: Vec<TensorSpec>,
}

impl std::fmt::Debug for FewerExperts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FewerExperts").field("kept", &self.kept).finish_non_exhaustive()
    }
}

impl<'a> FewerExperts<'a> {
    /// `parent` with only these experts of each block, as many of one as of another.
    pub fn new(parent: &'a dyn Weights, kept: Vec<Vec<usize>>) -> Self {
        let count = kept.first().map_or(0, Vec::len);
        assert!(kept.iter().all(|block| block.len() == count), "blocks have as many experts each");
        let config = left(parent.config(), count);
        let mut fewer = Self { parent, kept, config, specs: Vec::new() };
        let mut specs = tensor_specs(&fewer.config);
        specs.retain(|spec| fewer.whole(spec).is_some());
        fewer.specs = specs;
        fewer
    }

    /// The parent's tensor behind one of these.
    fn whole(&self, spec: &TensorSpec) -> Option<&'a TensorSpec> {
        let slot = match (spec.layer, spec.slot.expert()) {
            (Some(layer), Some(expert)) => spec.slot.of_expert(self.kept[layer][expert]),
            _ => spec.slot,
        };
        let is = |whole: &&TensorSpec| {
            (whole.layer, whole.slot, whole.role) == (spec.layer, slot, spec.role)
        };
        self.parent.specs().iter().find(is)
    }

    fn parent_spec(&self, spec: &TensorSpec) -> &'a TensorSpec {
        self.whole(spec).expect("what is left was there before")
    }

    /// The rows of a router that stay.
    fn rows(&self, spec: &TensorSpec) -> Option<&[usize]> {
        let layer = spec.layer.filter(|_| spec.slot == Slot::Router)?;
        Some(&self.kept[layer])
    }
}

impl Weights for FewerExperts<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let weight = self.parent.load(self.parent_spec(spec))?;
        Ok(match self.rows(spec) {
            Some(rows) => weight.pick_rows(rows),
            None => weight,
        })
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        self.parent.format(self.parent_spec(spec))
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        let copy = self.parent.copy_of(self.parent_spec(spec))?;
        let Some(kept) = self.rows(spec) else { return Some(copy) };
        let rows = match copy.rows {
            Some(rows) => kept.iter().map(|row| rows[*row]).collect(),
            None => kept.to_vec(),
        };
        Some(CopyOf { rows: Some(rows), ..copy })
    }
}
