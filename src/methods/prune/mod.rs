//! Pruning: what matters least goes.

pub mod llm_pruner;
pub mod memory;
pub mod score;

use self::score::Score;
use crate::model::{Config, Role, TensorSpec, Width, Widths, tensor_specs};
use crate::recipe::{Calibration, Prune, Ranking, RatioOf, Scope};

/// A pruning stage, checked against a model.
#[derive(Clone, Debug)]
pub struct Order {
    /// How channels are scored.
    pub score: Score,
    /// What is cut.
    pub widths: Vec<Width>,
    /// The share of each width that goes.
    pub ratio: f64,
    /// The model's configuration afterwards; where blocks compete with each other, with their mean widths.
    pub left: Config,
    stage: Prune,
}

/// What a pruning stage cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPrune {
    /// The field at fault.
    pub field: &'static str,
    /// What is allowed.
    pub expected: String,
    /// What was asked.
    pub found: String,
}

fn bad(field: &'static str, expected: impl Into<String>, found: impl ToString) -> BadPrune {
    BadPrune {
        field,
        expected: expected.into(),
        found: found.to_string(),
    }
}

impl Order {
    /// Checks a stage against a model of this configuration and these tensors.
    pub fn new(stage: &Prune, config: &Config, specs: &[TensorSpec]) -> Result<Self, BadPrune> {
        let ratio = stage.ratio;
        if !(ratio > 0.0 && ratio < 1.0) {
            return Err(bad("ratio", "more than 0 and less than 1", ratio));
        }
        let Some(score) = Score::named(&stage.score) else {
            let known = Score::ALL.map(Score::name).join(", ");
            return Err(bad("score", known, &stage.score));
        };
        if stage.steps == 0 {
            return Err(bad("steps", "1 or more", 0));
        }
        if stage.multiple == 0 {
            return Err(bad("multiple", "1 or more", 0));
        }
        let protected = stage.protect_first.saturating_add(stage.protect_last);
        if protected >= config.layers() {
            return Err(bad(
                "protect_first",
                format!("fewer than the model's {} layers in all", config.layers()),
                format!("{} + {}", stage.protect_first, stage.protect_last),
            ));
        }
        let widths = widths(stage)?;
        let blocks = stage.scope == Scope::Block;
        if !blocks && stage.ranking == Ranking::Global {
            return Err(bad("ranking", "local, but for blocks", "global"));
        }
        if stage.scope == Scope::Channel && protected > 0 {
            let expected = "0: the hidden width goes through every layer";
            return Err(bad("protect_first", expected, protected));
        }
        if blocks && !stage.non_uniform {
            let say = "or non_uniform, for which a stock Llama has no words (gguf's deci has)";
            if stage.ranking == Ranking::Global {
                return Err(bad("ranking", format!("local, {say}"), "global"));
            }
            if protected > 0 {
                return Err(bad("protect_first", format!("0, {say}"), protected));
            }
        }
        let mut order = Self {
            score,
            widths,
            ratio,
            left: config.clone(),
            stage: stage.clone(),
        };
        if stage.ratio_of == RatioOf::Parameters {
            order.ratio = order.widths_ratio(config, specs);
        }
        order.left = order.at(config, order.ratio);
        if order.left == *config {
            let units = order.widths.iter().map(|width| {
                let step = order.multiple(*width);
                format!(
                    "{} {} by {step}",
                    width.units(config, Some(0)),
                    width.name()
                )
            });
            let expected = format!(
                "enough to cut something of {}",
                units.collect::<Vec<_>>().join(", ")
            );
            return Err(bad("ratio", expected, ratio));
        }
        Ok(order)
    }

    /// Whether blocks compete with each other, so that what is left of each is known afterwards only.
    pub fn is_global(&self) -> bool {
        self.stage.ranking == Ranking::Global
    }

    /// Sequences of the calibration and the length of each.
    pub fn calibration_shape(&self) -> (usize, usize) {
        let Calibration {
            samples, length, ..
        } = self.stage.calibration;
        (samples.max(1), length.max(2))
    }

    /// The calibration's text and where its rows are taken.
    pub fn calibration(&self) -> &Calibration {
        &self.stage.calibration
    }

    /// The configuration that is left of `config` at a share of its widths.
    fn at(&self, config: &Config, ratio: f64) -> Config {
        let mut left = config.clone();
        for width in &self.widths {
            match width {
                Width::Hidden => left.hidden_size = self.kept(*width, config, 0, ratio),
                Width::Layers => {
                    let count = self.kept(*width, config, 0, ratio).max(self.protected());
                    left.blocks.truncate(count);
                }
                Width::FeedForward | Width::KvGroup => {
                    for layer in (0..config.layers()).filter(|layer| self.may_cut(config, *layer)) {
                        let kept = self.kept(*width, config, layer, ratio);
                        let block = &mut left.blocks[layer];
                        *block = match width {
                            Width::FeedForward => Widths {
                                intermediate_size: kept,
                                ..*block
                            },
                            _ => Widths {
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

    /// Units of a width that stay, of those that a layer of `config` has: as LLM-Pruner counts them, the whole part of what is
    /// left, then to the nearest multiple.
    fn kept(&self, width: Width, config: &Config, layer: usize, ratio: f64) -> usize {
        let units = width.units(config, Some(layer));
        let left = (units as f64 * (1.0 - ratio) + 1e-9).floor() as usize;
        self.rounded(width, left).min(units)
    }

    fn rounded(&self, width: Width, units: usize) -> usize {
        let step = self.multiple(width);
        ((units + step / 2) / step * step).max(step)
    }

    fn multiple(&self, width: Width) -> usize {
        match width {
            Width::FeedForward | Width::Hidden => self.stage.multiple,
            Width::KvGroup | Width::Layers => 1,
        }
    }

    fn protected(&self) -> usize {
        self.stage.protect_first + self.stage.protect_last
    }

    /// Whether a block of a model of this configuration may be cut.
    fn may_cut(&self, config: &Config, layer: usize) -> bool {
        (self.stage.protect_first..config.layers() - self.stage.protect_last).contains(&layer)
    }

    /// The share of the widths that leaves as nearly as can be what the ratio says of the parameters.
    fn widths_ratio(&self, config: &Config, specs: &[TensorSpec]) -> f64 {
        let aim = (1.0 - self.ratio) * parameters(config, specs) as f64;
        let off = |ratio: f64| {
            let left = parameters(&self.at(config, ratio), specs) as f64;
            (left - aim).abs()
        };
        let shares = (1..1000).map(|thousandth| f64::from(thousandth) / 1000.0);
        shares
            .min_by(|a, b| off(*a).total_cmp(&off(*b)))
            .unwrap_or(self.ratio)
    }
}

fn widths(stage: &Prune) -> Result<Vec<Width>, BadPrune> {
    match stage.scope {
        Scope::Channel => return Ok(vec![Width::Hidden]),
        Scope::Layer => return Ok(vec![Width::Layers]),
        Scope::Block => {}
    }
    let both = [Width::FeedForward, Width::KvGroup];
    let named = |name: &String| {
        let found = both.into_iter().find(|width| width.name() == name);
        found.ok_or_else(|| bad("widths", "ffn, kvgroup", name))
    };
    let mut widths = stage
        .widths
        .iter()
        .map(named)
        .collect::<Result<Vec<_>, _>>()?;
    if widths.is_empty() {
        return Err(bad("widths", "ffn, kvgroup or both", "none"));
    }
    // Cut once, however often it is named.
    widths.sort();
    widths.dedup();
    Ok(widths)
}

/// The tensors of a model of this configuration whose parent has tensors like `specs`: biases only where those have them.
pub fn left_specs(config: &Config, specs: &[TensorSpec]) -> Vec<TensorSpec> {
    let kind = |spec: &TensorSpec| match spec.layer() {
        Some(layer) => spec.name.replacen(&format!(".{layer}."), ".*.", 1),
        None => spec.name.clone(),
    };
    let biases: Vec<String> = specs
        .iter()
        .filter(|s| s.role == Role::Bias)
        .map(kind)
        .collect();
    let mut left = tensor_specs(config);
    left.retain(|spec| spec.role != Role::Bias || biases.contains(&kind(spec)));
    left
}

/// Weights of a model of this configuration, like [`left_specs`].
pub fn parameters(config: &Config, specs: &[TensorSpec]) -> u64 {
    let values = |spec: TensorSpec| (spec.rows * spec.columns) as u64;
    left_specs(config, specs).into_iter().map(values).sum()
}
