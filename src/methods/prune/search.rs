//! Shapes that a model is cut to: as they are asked for, and those that come near a size. As in Minitron's search (Muralidharan et
//! al. 2024, arXiv 2407.14679, section 2.3, and NVIDIA's Model-Optimizer), all combinations of widths within caps are listed, and
//! of those near the size the ones that keep most of the importance are cut and tried on held-out text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::minitron::Importance;
use crate::methods::BadField;
use crate::model::{BlockDims, Config, Group, Outline, PrunableDim, groups};

/// Widths that are asked for: `ffn=288,heads=2,hidden=96,layers=5`. What is not named is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Feed-forward channels of a block.
    pub ffn: Option<usize>,
    /// Query heads of a block.
    pub heads: Option<usize>,
    /// Key-value heads of a block.
    pub kvgroups: Option<usize>,
    /// Columns of the residual stream.
    pub hidden: Option<usize>,
    /// Blocks.
    pub layers: Option<usize>,
}

/// The names of a shape's widths.
const NAMES: [&str; 5] = ["ffn", "heads", "kvgroups", "hidden", "layers"];

impl Shape {
    /// That of a model whose blocks are alike; `None` if they are not.
    pub fn of(config: &Config) -> Option<Self> {
        let block = config.uniform()?;
        Some(Self {
            ffn: Some(block.intermediate_size),
            heads: Some(block.heads),
            kvgroups: Some(block.kv_heads),
            hidden: Some(config.hidden_size),
            layers: Some(config.layers()),
        })
    }

    fn widths(&self) -> [Option<usize>; 5] {
        [self.ffn, self.heads, self.kvgroups, self.hidden, self.layers]
    }

    /// Whether no width is named.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The configuration of a model of this shape that `whole`, whose blocks are alike, is cut to. What is not named stays; but
    /// query heads go with their key-value heads. Widths that are named are multiples of `multiple` where they are channels.
    pub fn cut(&self, whole: &Config, multiple: usize) -> Result<Config, BadField> {
        const FIELD: &str = "target_shape";
        let Some(block) = whole.uniform() else {
            return Err(BadField::new(FIELD, "a model whose blocks are alike", "several widths"));
        };
        let most = Self::of(whole).unwrap_or_default().widths();
        for ((name, asked), most) in NAMES.into_iter().zip(self.widths()).zip(most) {
            let (Some(asked), Some(most)) = (asked, most) else { continue };
            let whole_step = match name {
                "ffn" | "hidden" => asked == most || asked.is_multiple_of(multiple),
                _ => true,
            };
            if asked == 0 || asked > most || !whole_step {
                let steps = match name {
                    "ffn" | "hidden" => format!(", a multiple of {multiple} (--multiple)"),
                    _ => String::new(),
                };
                let expected = format!("{name} of 1 to the model's {most}{steps}");
                return Err(BadField::new(FIELD, expected, format!("{name}={asked}")));
            }
        }
        let kv_heads = self.kvgroups.unwrap_or(block.kv_heads);
        let each = block.heads / block.kv_heads;
        let heads = self.heads.unwrap_or(each * kv_heads);
        if !heads.is_multiple_of(kv_heads) || heads > each * kv_heads {
            let expected = format!(
                "heads a multiple of the {kv_heads} key-value heads, up to {}",
                each * kv_heads
            );
            return Err(BadField::new(FIELD, expected, format!("heads={heads}")));
        }
        let mut left = whole.clone();
        left.hidden_size = self.hidden.unwrap_or(whole.hidden_size);
        let intermediate_size = self.ffn.unwrap_or(block.intermediate_size);
        for block in &mut left.blocks {
            *block = BlockDims { heads, kv_heads, intermediate_size, ..*block };
        }
        left.blocks.truncate(self.layers.unwrap_or(whole.layers()));
        Ok(left)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = NAMES.into_iter().zip(self.widths());
        let named = named.filter_map(|(name, width)| Some(format!("{name}={}", width?)));
        f.write_str(&named.collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut shape = Self::default();
        for part in text.split(',') {
            let expected =
                || format!("some of {}, each as NAME=NUMBER, with commas", NAMES.join(", "));
            let (name, width) = part.split_once('=').ok_or_else(expected)?;
            let width = width.trim().parse().map_err(|_| expected())?;
            let slot = match name.trim() {
                "ffn" => &mut shape.ffn,
                "heads" => &mut shape.heads,
                "kvgroups" => &mut shape.kvgroups,
                "hidden" => &mut shape.hidden,
                "layers" => &mut shape.layers,
                _ => return Err(expected()),
            };
            if slot.replace(width).is_some() {
                return Err(format!("{} once", name.trim()));
            }
        }
        Ok(shape)
    }
}

/// What a size is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Weights.
    Parameters,
    /// Bytes of the tensors in their formats.
    Bytes,
    /// Operations of the products with weights for one token.
    Flops,
}

const MEASURES: [(Measure, &str); 3] =
    [(Measure::Parameters, "parameters"), (Measure::Bytes, "bytes"), (Measure::Flops, "flops")];

impl Measure {
    /// The name in flags and reports.
    pub fn name(self) -> &'static str {
        MEASURES.iter().find(|(measure, _)| *measure == self).map_or("", |(_, name)| name)
    }

    /// The size of a model.
    pub fn of(self, model: &Outline) -> u64 {
        match self {
            Measure::Parameters => model.parameters(),
            Measure::Bytes => model.unpadded_bytes(),
            Measure::Flops => model.flops_per_token(),
        }
    }
}

/// The most that may be left: `parameters=1.5M`, `bytes=90M`, `flops=2G`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Of what.
    pub of: Measure,
    /// How much.
    pub most: u64,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.of.name(), self.most)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "parameters, bytes or flops, with a number: parameters=1.5M".to_string();
        let (name, size) = text.split_once('=').ok_or_else(expected)?;
        let known = MEASURES.into_iter().find(|(_, known)| *known == name.trim());
        let size = size.trim();
        let (digits, unit) = match size.char_indices().last() {
            Some((at, 'k' | 'K')) => (&size[..at], 1e3),
            Some((at, 'M')) => (&size[..at], 1e6),
            Some((at, 'G')) => (&size[..at], 1e9),
            _ => (size, 1.0),
        };
        let number: f64 = digits.trim().parse().map_err(|_| expected())?;
        let most = (number * unit).round();
        match known {
            Some((of, _)) if (1.0..1e18).contains(&most) => Ok(Self { of, most: most as u64 }),
            _ => Err(expected()),
        }
    }
}

/// Serialized as the text that it is in flags.
macro_rules! as_text {
    ($($ty:ty),*) => {$(
        impl Serialize for $ty {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|expected: String| {
                    serde::de::Error::custom(format!("expected {expected}, found `{text}`"))
                })
            }
        }
    )*};
}
as_text!(Shape, Target);

/// Within what candidates are looked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Caps {
    /// The most of a width that goes, as a share.
    pub width: f64,
    /// The most of the blocks that go, as a share.
    pub depth: f64,
    /// Channels that are left are multiples of this.
    pub multiple: usize,
    /// Blocks that stay.
    pub protected: usize,
}

/// A shape within the caps, and its size.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// What is left.
    pub config: Config,
    /// About how large it is: blocks count as the mean of those that are there.
    pub size: u64,
}

/// Sizes of a width that are tried at most: a coarser step is taken where there would be more.
const STEPS: usize = 32;

/// Every shape within the caps, the largest first, with `fixed` widths as they are; `cut` gives the outline of what is left.
pub fn candidates(
    model: &Outline,
    fixed: &Shape,
    caps: &Caps,
    of: Measure,
    cut: &dyn Fn(Config) -> Outline,
) -> Result<Vec<Candidate>, BadField> {
    let whole = &model.config;
    let base = fixed.cut(whole, caps.multiple)?;
    let block = base.blocks[0];
    let least = |units: usize, share: f64| (units as f64 * (1.0 - share) - 1e-9).ceil() as usize;
    let channels = |fixed: Option<usize>, units: usize| -> Vec<usize> {
        if fixed.is_some() {
            return vec![units];
        }
        let least = least(units, caps.width).max(1);
        let steps = (units - least).div_ceil(caps.multiple * STEPS).max(1);
        let step = caps.multiple * steps;
        let below = (1..=units / step).map(|n| n * step).filter(|n| *n >= least && *n < units);
        std::iter::once(units).chain(below.rev()).collect()
    };
    let (kv_heads, each) = (block.kv_heads, block.heads / block.kv_heads);
    let fewest = if fixed.heads.is_some() { each } else { least(each, caps.width).max(1) };
    let depth = match fixed.layers {
        Some(layers) => layers..=layers,
        None => {
            let layers = whole.layers();
            least(layers, caps.depth).max(caps.protected).clamp(1, layers)..=layers
        }
    };
    let mut found = Vec::new();
    for hidden_size in channels(fixed.hidden, whole.hidden_size.min(base.hidden_size)) {
        for heads in (fewest..=each).rev().map(|each| each * kv_heads) {
            for intermediate_size in channels(fixed.ffn, block.intermediate_size) {
                let mut config = Config { hidden_size, ..whole.clone() };
                for block in &mut config.blocks {
                    *block = BlockDims { heads, kv_heads, intermediate_size, ..*block };
                }
                let outline = cut(config.clone());
                let all = of.of(&outline);
                let inside = of.of(&in_blocks(&outline));
                for layers in depth.clone() {
                    let mut config = config.clone();
                    config.blocks.truncate(layers);
                    let gone = (whole.layers() - layers) as u64;
                    let size = all - inside * gone / whole.layers() as u64;
                    found.push(Candidate { config, size });
                }
            }
        }
    }
    found.sort_by_key(|candidate| std::cmp::Reverse(candidate.size));
    Ok(found)
}

/// The tensors of the blocks.
fn in_blocks(model: &Outline) -> Outline {
    let inside: Vec<usize> =
        (0..model.specs.len()).filter(|place| model.specs[*place].layer().is_some()).collect();
    Outline {
        config: model.config.clone(),
        specs: inside.iter().map(|place| model.specs[*place].clone()).collect(),
        formats: inside.iter().map(|place| model.formats[*place]).collect(),
        copies: inside.iter().map(|place| model.copies[*place].clone()).collect(),
        first: model.first.clone(),
        ..*model
    }
}

/// The candidates of at most `target`, of those sorted by size: an error if there is none, or if the model is no larger.
pub fn within<'c>(
    all: &'c [Candidate],
    target: &Target,
    whole: u64,
) -> Result<&'c [Candidate], BadField> {
    let name = target.of.name();
    if target.most >= whole {
        let expected = format!("less than the model's {whole} {name}");
        return Err(BadField::new("target", expected, target));
    }
    let first = all.iter().position(|candidate| candidate.size <= target.most);
    match (first, all.last()) {
        (Some(first), _) => Ok(&all[first..]),
        (None, least) => {
            let least = least.map_or(whole, |candidate| candidate.size);
            let expected = format!(
                "at least {least} {name}, the least that --most-width, --most-depth and --multiple leave"
            );
            Err(BadField::new("target", expected, target))
        }
    }
}

/// How near to the target candidates must be to be tried, as a share of it: first, and twice as far until there are enough.
const NEAR: f64 = 0.01;

/// The `count` candidates to try: of those near the target the ones that keep most of the importance, the best first. `within`
/// is sorted by size.
pub fn shortlist(
    within: &[Candidate],
    target: &Target,
    count: usize,
    model: &Outline,
    importance: &Importance,
    order: &[usize],
) -> Vec<(Candidate, f64)> {
    let mut near = NEAR;
    let close = loop {
        let least = target.most as f64 * (1.0 - near);
        let close = within.iter().take_while(|candidate| candidate.size as f64 >= least).count();
        if close >= count || close == within.len() {
            break close;
        }
        near *= 2.0;
    };
    let whole = &model.config;
    let shares = Shares::new(&groups(whole, &model.specs), importance, order);
    let mut list: Vec<(Candidate, f64)> =
        within[..close].iter().map(|one| (one.clone(), shares.kept(whole, &one.config))).collect();
    // The sort is stable: of equals the larger one is first.
    list.sort_by(|a, b| b.1.total_cmp(&a.1));
    list.truncate(count);
    list
}

/// What part of the squared importance the most important units of each width have.
struct Shares {
    /// By width: of all blocks the mean, with so many units kept of each part.
    widths: Vec<(PrunableDim, Vec<f64>)>,
    /// The product of the cosines of the first blocks that go.
    depth: Vec<f64>,
}

impl Shares {
    fn new(all: &[Group], importance: &Importance, order: &[usize]) -> Self {
        let dims = [
            PrunableDim::FeedForward,
            PrunableDim::Head,
            PrunableDim::KvGroup,
            PrunableDim::Hidden,
        ];
        let of_group = |group: &Group| -> Vec<f64> {
            let units = importance.units(group);
            let part = group.units / group.parts;
            let mut kept = vec![0.0; part + 1];
            for units in units.chunks(part) {
                let mut squares: Vec<f64> = units.iter().map(|u| f64::from(*u).powi(2)).collect();
                squares.sort_by(|a, b| b.total_cmp(a));
                let mut sum = 0.0;
                for (count, square) in squares.iter().enumerate() {
                    sum += square;
                    kept[count + 1] += sum;
                }
            }
            let all = kept[part].max(f64::MIN_POSITIVE);
            kept.into_iter().map(|sum| sum / all).collect()
        };
        let mean = |width: PrunableDim| {
            let lists: Vec<Vec<f64>> =
                all.iter().filter(|group| group.width == width).map(of_group).collect();
            let length = lists.first().map_or(0, Vec::len);
            let at = |place: usize| {
                lists.iter().map(|list| list[place]).sum::<f64>() / lists.len() as f64
            };
            (width, (0..length).map(at).collect::<Vec<f64>>())
        };
        let mut product = 1.0;
        let mut depth = vec![1.0];
        for layer in order {
            product *= (1.0 - f64::from(importance.depth[*layer])).max(0.0);
            depth.push(product);
        }
        Self { widths: dims.into_iter().map(mean).collect(), depth }
    }

    /// The product over the widths of what is kept of each.
    fn kept(&self, whole: &Config, left: &Config) -> f64 {
        let after = left.blocks[0];
        let gone = whole.layers() - left.layers();
        let mut kept = self.depth.get(gone).copied().unwrap_or(0.0);
        for (width, shares) in &self.widths {
            let units = match width {
                PrunableDim::FeedForward => after.intermediate_size,
                PrunableDim::Head => after.heads / after.kv_heads,
                PrunableDim::KvGroup => after.kv_heads,
                _ => left.hidden_size,
            };
            kept *= shares.get(units).copied().unwrap_or(1.0);
        }
        kept
    }
}
