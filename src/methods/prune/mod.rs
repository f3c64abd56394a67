//! Pruning: what matters least goes.

pub mod depth;
pub mod experts;
pub mod llm_pruner;
pub mod memory;
pub mod minitron;
pub mod rounds;
pub mod score;
pub mod search;
pub mod slice;
pub mod sparse;

use super::BadField;
use crate::model::{BlockDims, Config, Group, PrunableDim, Role, TensorSpec, tensor_specs};

/// What is cut of a model, checked against it.
#[derive(Clone, Debug)]
pub struct PruneSpec {
    /// The structures that are cut, in order.
    pub widths: Vec<PrunableDim>,
    /// How much of them.
    pub aim: Aim,
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

/// How much is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// This share of each width.
    Ratio(f64),
    /// All that is more than [`PruneSpec::left`].
    Shape,
}

impl PruneSpec {
    /// Finds what a ratio leaves of a model of this configuration and these tensors: sets `left`, and where `of_parameters` makes
    /// a ratio of the parameters one of the widths. An error if that cuts nothing.
    pub fn checked(
        mut self,
        of_parameters: bool,
        config: &Config,
        specs: &[TensorSpec],
    ) -> Result<Self, BadField> {
        let asked = self.ratio();
        if of_parameters {
            self.aim = Aim::Ratio(self.widths_ratio(asked, config, specs));
        }
        self.left = self.at(config, self.ratio());
        if self.left != *config {
            return Ok(self);
        }
        let units = self.widths.iter().map(|width| {
            let (units, step) = (width.units(config, Some(0)), self.multiple(*width, config));
            format!("{units} {} by {step}", width.name())
        });
        let units = units.collect::<Vec<_>>().join(", ");
        let expected = format!("enough to cut something of {units}");
        Err(BadField::new("ratio", expected, asked))
    }

    /// The same of a model that an earlier cut, or several, made of one of configuration `first`, of which the ratio is: what is
    /// left is what one cut of that would leave, or less where less is there. No error if that cuts nothing.
    pub fn of_first(
        mut self,
        of_parameters: bool,
        (first, now): (&Config, &Config),
        specs: &[TensorSpec],
    ) -> Result<Self, BadField> {
        let one_cut = self.clone().checked(of_parameters, first, specs)?;
        let mut left = now.clone();
        left.hidden_size = left.hidden_size.min(one_cut.left.hidden_size);
        left.blocks.truncate(one_cut.left.layers());
        for (layer, block) in left.blocks.iter_mut().enumerate() {
            let aim = one_cut.left.blocks[layer];
            let each = |block: &BlockDims| block.heads / block.kv_heads;
            let kv_heads = block.kv_heads.min(aim.kv_heads);
            *block = BlockDims {
                heads: each(block).min(each(&aim)) * kv_heads,
                kv_heads,
                intermediate_size: block.intermediate_size.min(aim.intermediate_size),
                ..*block
            };
        }
        (self.aim, self.left) = (Aim::Shape, left);
        Ok(self)
    }

    /// The share of each width that goes in all; of a shape, which has several, none.
    fn ratio(&self) -> f64 {
        match self.aim {
            Aim::Ratio(ratio) => ratio,
            Aim::Shape => 0.0,
        }
    }

    /// The groups that are cut of those of a model of this configuration.
    pub fn groups(&self, config: &Config, groups: Vec<Group>) -> Vec<Group> {
        let cuts = |group: &Group| {
            let may = group.layer.is_none_or(|layer| self.may_cut(config, layer));
            self.widths.contains(&group.width) && may
        };
        groups.into_iter().filter(cuts).collect()
    }

    /// The configuration that is left of `whole` after so many rounds.
    pub fn after(&self, whole: &Config, rounds: usize) -> Config {
        let share = rounds as f64 / self.steps as f64;
        match self.aim {
            Aim::Ratio(ratio) => self.at(whole, ratio * share),
            Aim::Shape if rounds == self.steps => self.left.clone(),
            Aim::Shape => self.between(whole, share),
        }
    }

    /// The configuration that is left of `whole` when this share of what goes has gone.
    fn between(&self, whole: &Config, share: f64) -> Config {
        let part = |before: usize, after: usize, step: usize| {
            let gone = before.saturating_sub(after) as f64 * share / step as f64;
            before - (gone.round() as usize * step).min(before.saturating_sub(after))
        };
        let mut left = whole.clone();
        left.hidden_size = part(whole.hidden_size, self.left.hidden_size, self.multiple);
        // Blocks of a shape are alike: which of them go does not matter.
        for (block, aim) in left.blocks.iter_mut().zip(self.left.blocks.iter().cycle()) {
            let kv_heads = part(block.kv_heads, aim.kv_heads, 1);
            let each = part(block.heads / block.kv_heads, aim.heads / aim.kv_heads, 1);
            let channels = part(block.intermediate_size, aim.intermediate_size, self.multiple);
            *block = BlockDims {
                heads: each * kv_heads,
                kv_heads,
                intermediate_size: channels,
                ..*block
            };
        }
        left.blocks.truncate(part(whole.layers(), self.left.layers(), 1));
        left
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
                PrunableDim::Head => {
                    for layer in (0..config.layers()).filter(|layer| self.may_cut(config, *layer)) {
                        let block = &mut left.blocks[layer];
                        let each = block.heads / block.kv_heads;
                        block.heads = staying(width, config, each, ratio).max(1) * block.kv_heads;
                    }
                }
                PrunableDim::FeedForward | PrunableDim::KvGroup => {
                    let pool = self.pool(width, config);
                    let (total, step) =
                        (staying(width, config, pool, ratio), self.multiple(width, config));
                    let whole = |units: usize| (units + step / 2) / step * step;
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

    /// Units of them that stay after so many rounds where blocks compete.
    fn total(&self, width: PrunableDim, config: &Config, rounds: usize) -> usize {
        let ratio = self.ratio() * rounds as f64 / self.steps as f64;
        staying(width, config, self.pool(width, config), ratio)
    }

    /// What becomes of each width, as `ffn 384 to 352 (0.083 go)`, and whether any share is far from the ratio: by more than a
    /// twentieth of it.
    pub fn outcome(&self, config: &Config) -> (String, bool) {
        let mut far = false;
        let ratio = self.ratio();
        let widths = self.widths.iter().map(|width| {
            let of_blocks = width.of_blocks();
            let units = |of: &Config| match of_blocks {
                true => self.pool(*width, of),
                false => width.units(of, None),
            };
            let (before, after) = (units(config), units(&self.left));
            let share = 1.0 - after as f64 / before as f64;
            far |= (share - ratio).abs() > ratio / 20.0;
            let step = match self.multiple(*width, config) {
                1 => String::new(),
                step => format!(", multiples of {step}"),
            };
            let blocks = if of_blocks { " in all blocks" } else { "" };
            let name = width.name();
            match before == after {
                true => format!("{name} stay {before}{blocks}{step}"),
                false => format!("{name} {before} to {after}{blocks} ({share:.3} go{step})"),
            }
        });
        (widths.collect::<Vec<_>>().join(", "), far)
    }

    fn rounded(&self, width: PrunableDim, units: usize) -> usize {
        let step = match width {
            PrunableDim::FeedForward | PrunableDim::Hidden => self.multiple,
            _ => 1,
        };
        ((units + step / 2) / step * step).max(step)
    }

    /// What units of a width that are left are a multiple of.
    fn multiple(&self, width: PrunableDim, config: &Config) -> usize {
        match width {
            PrunableDim::FeedForward | PrunableDim::Hidden => self.multiple,
            PrunableDim::Head => config.blocks.first().map_or(1, |block| block.kv_heads),
            PrunableDim::KvGroup | PrunableDim::Layers => 1,
        }
    }

    /// Whether a block of a model of this configuration may be cut.
    fn may_cut(&self, config: &Config, layer: usize) -> bool {
        (self.protected.0..config.layers() - self.protected.1).contains(&layer)
    }

    /// The share of the widths that leaves as nearly as can be what this ratio says of the parameters.
    fn widths_ratio(&self, ratio: f64, config: &Config, specs: &[TensorSpec]) -> f64 {
        let aim = (1.0 - ratio) * parameters(config, specs) as f64;
        let off = |ratio: f64| {
            let left = parameters(&self.at(config, ratio), specs) as f64;
            (left - aim).abs()
        };
        let shares = (1..1000).map(|thousandth| f64::from(thousandth) / 1000.0);
        shares.min_by(|a, b| off(*a).total_cmp(&off(*b))).unwrap_or(ratio)
    }
}

/// Units of a width that stay of so many, as LLM-Pruner counts them: of channels the whole part of what is left; of heads, those
/// that are not wholly within the channels that go. Blocks, of which it is told the number, go as whole ones, and so do the query
/// heads of one key-value head.
fn staying(width: PrunableDim, config: &Config, units: usize, ratio: f64) -> usize {
    // 0.7 times 10 is 7, whatever binary fractions make of it.
    let whole = |share: f64, units: usize| (units as f64 * share + 1e-9).floor() as usize;
    match width {
        PrunableDim::FeedForward | PrunableDim::Hidden => whole(1.0 - ratio, units),
        PrunableDim::KvGroup => {
            let channels = units * config.head_dim;
            units - (channels - whole(1.0 - ratio, channels)) / config.head_dim
        }
        PrunableDim::Head | PrunableDim::Layers => units - whole(ratio, units),
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
