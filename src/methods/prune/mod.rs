//! Pruning: what matters least goes.

pub mod llm_pruner;
pub mod memory;
pub mod score;
pub mod slice;
pub mod sparse;

use self::score::Score;
use super::BadField;
use crate::kernels::score::Reduction;
use crate::model::{BlockDims, Config, PrunableDim, Role, TensorSpec, tensor_specs};

/// A pruning request, checked against its model.
#[derive(Clone, Debug)]
pub struct PruneSpec {
    /// How channels are scored.
    pub score: Score,
    /// How the scores that a group's tensors give one channel are joined.
    pub reduction: Reduction,
    /// The structures that are cut.
    pub widths: Vec<PrunableDim>,
    /// The share of each width that goes.
    pub ratio: f64,
    /// Whether channels compete with those of all blocks, and not within their block only.
    pub global: bool,
    /// Rounds of scoring and cutting, with an even share each.
    pub steps: usize,
    /// Feed-forward and hidden widths that are left are multiples of this.
    pub multiple: usize,
    /// First and last blocks that stay as they are.
    pub protected: (usize, usize),
    /// The model's configuration afterwards; where blocks compete with each other, with their mean widths.
    pub left: Config,
}

impl PruneSpec {
    /// Finds what is left of a model of this configuration and these tensors: sets `left`, and where `of_parameters` makes a
    /// ratio of the parameters one of the widths. An error if that cuts nothing.
    pub fn checked(
        mut self,
        of_parameters: bool,
        config: &Config,
        specs: &[TensorSpec],
    ) -> Result<Self, BadField> {
        let asked = self.ratio;
        if of_parameters {
            self.ratio = self.widths_ratio(config, specs);
        }
        self.left = self.at(config, self.ratio);
        if self.left != *config {
            return Ok(self);
        }
        let units = self.widths.iter().map(|width| {
            let (units, step) = (width.units(config, Some(0)), self.multiple(*width));
            format!("{units} {} by {step}", width.name())
        });
        let units = units.collect::<Vec<_>>().join(", ");
        let expected = format!("enough to cut something of {units}");
        Err(BadField::new("ratio", expected, asked))
    }

    /// The configuration that is left of `config` at a share of its widths. Blocks that compete are given even parts of what
    /// stays of them all, because only scores tell.
    fn at(&self, config: &Config, ratio: f64) -> Config {
        let mut left = config.clone();
        for &width in &self.widths {
            match width {
                PrunableDim::Hidden => {
                    let units = config.hidden_size;
                    let stay = self.rounded(width, staying(width, config, units, ratio));
                    left.hidden_size = stay.min(units);
                }
                PrunableDim::Layers => {
                    let protected = self.protected.0 + self.protected.1;
                    let stay = staying(width, config, config.layers(), ratio);
                    left.blocks.truncate(stay.max(protected).max(1));
                }
                PrunableDim::FeedForward | PrunableDim::KvGroup => {
                    let (total, step) = (self.total(width, config, ratio), self.multiple(width));
                    let whole = |units: usize| (units + step / 2) / step * step;
                    let pool = self.pool(width, config);
                    let mut seen = 0;
                    for layer in (0..config.layers()).filter(|layer| self.may_cut(config, *layer)) {
                        let units = width.units(config, Some(layer));
                        let upto = |seen: usize| whole(total * seen / pool);
                        let stay = match self.global {
                            false => self.rounded(width, staying(width, config, units, ratio)),
                            true => (upto(seen + units) - upto(seen)).max(step),
                        };
                        seen += units;
                        let (kept, block) = (stay.min(units), &mut left.blocks[layer]);
                        *block = match width {
                            PrunableDim::FeedForward => {
                                BlockDims { intermediate_size: kept, ..*block }
                            }
                            _ => BlockDims {
                                heads: block.heads / block.kv_heads * kept,
                                kv_heads: kept,
                                ..*block
                            },
                        };
                    }
                }
            }
        }
        left
    }

    /// Units of a width in all blocks that may be cut.
    fn pool(&self, width: PrunableDim, config: &Config) -> usize {
        let layers = (0..config.layers()).filter(|layer| self.may_cut(config, *layer));
        layers.map(|layer| width.units(config, Some(layer))).sum()
    }

    /// Units of them that stay where blocks compete.
    fn total(&self, width: PrunableDim, config: &Config, ratio: f64) -> usize {
        staying(width, config, self.pool(width, config), ratio)
    }

    /// What becomes of each width, as `ffn 384 to 352 (0.083 go)`, and whether any share is far from `ratio`: by more than a
    /// twentieth of it.
    pub fn outcome(&self, config: &Config) -> (String, bool) {
        let mut far = false;
        let widths = self.widths.iter().map(|width| {
            let units = |of: &Config| match width {
                PrunableDim::FeedForward | PrunableDim::KvGroup => self.pool(*width, of),
                _ => width.units(of, None),
            };
            let (before, after) = (units(config), units(&self.left));
            let share = 1.0 - after as f64 / before as f64;
            far |= (share - self.ratio).abs() > self.ratio / 20.0;
            let step = match self.multiple(*width) {
                1 => String::new(),
                step => format!(", multiples of {step}"),
            };
            let blocks = match width {
                PrunableDim::FeedForward | PrunableDim::KvGroup => " in all blocks",
                _ => "",
            };
            let name = width.name();
            match before == after {
                true => format!("{name} stay {before}{blocks}{step}"),
                false => format!("{name} {before} to {after}{blocks} ({share:.3} go{step})"),
            }
        });
        (widths.collect::<Vec<_>>().join(", "), far)
    }

    fn rounded(&self, width: PrunableDim, units: usize) -> usize {
        let step = self.multiple(width);
        ((units + step / 2) / step * step).max(step)
    }

    fn multiple(&self, width: PrunableDim) -> usize {
        match width {
            PrunableDim::FeedForward | PrunableDim::Hidden => self.multiple,
            PrunableDim::KvGroup | PrunableDim::Layers => 1,
        }
    }

    /// Whether a block of a model of this configuration may be cut.
    fn may_cut(&self, config: &Config, layer: usize) -> bool {
        (self.protected.0..config.layers() - self.protected.1).contains(&layer)
    }

    /// The share of the widths that leaves as nearly as can be what the ratio says of the parameters.
    fn widths_ratio(&self, config: &Config, specs: &[TensorSpec]) -> f64 {
        let aim = (1.0 - self.ratio) * parameters(config, specs) as f64;
        let off = |ratio: f64| {
            let left = parameters(&self.at(config, ratio), specs) as f64;
            (left - aim).abs()
        };
        let shares = (1..1000).map(|thousandth| f64::from(thousandth) / 1000.0);
        shares.min_by(|a, b| off(*a).total_cmp(&off(*b))).unwrap_or(self.ratio)
    }
}

/// Units of a width that stay of so many, as LLM-Pruner counts them: of channels the whole part of what is left; of heads, those
/// that are not wholly within the channels that go. Blocks, of which it is told the number, go as whole ones.
fn staying(width: PrunableDim, config: &Config, units: usize, ratio: f64) -> usize {
    // 0.7 times 10 is 7, whatever binary fractions make of it.
    let whole = |share: f64, units: usize| (units as f64 * share + 1e-9).floor() as usize;
    match width {
        PrunableDim::FeedForward | PrunableDim::Hidden => whole(1.0 - ratio, units),
        PrunableDim::KvGroup => {
            let channels = units * config.head_dim;
            units - (channels - whole(1.0 - ratio, channels)) / config.head_dim
        }
        PrunableDim::Layers => units - whole(ratio, units),
    }
}

/// The tensors of a model of this configuration whose parent has tensors like `specs`: biases only where those have them.
pub fn left_specs(config: &Config, specs: &[TensorSpec]) -> Vec<TensorSpec> {
    let kind = |spec: &TensorSpec| match spec.layer() {
        Some(layer) => spec.name.replacen(&format!(".{layer}."), ".*.", 1),
        None => spec.name.clone(),
    };
    let biases: Vec<String> = specs.iter().filter(|s| s.role == Role::Bias).map(kind).collect();
    let mut left = tensor_specs(config);
    left.retain(|spec| spec.role != Role::Bias || biases.contains(&kind(spec)));
    left
}

/// Weights of a model of this configuration, like [`left_specs`].
pub fn parameters(config: &Config, specs: &[TensorSpec]) -> u64 {
    let values = |spec: TensorSpec| (spec.rows * spec.columns) as u64;
    left_specs(config, specs).into_iter().map(values).sum()
}
