//! `merge`: several models become one, by one of several methods: rows of [`METHODS`]. The stage runs on the first of them, or the
//! one that the others began with; its keys name the others.

mod average;
mod deltas;
mod passthrough;
mod soup;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::method::{Method, OfMethod, flags, method, stage};
use super::{Context, Needs, Planned, RecipeStage, Stage, StageKind, keys, save};
use crate::error::Result;
use crate::interrupt;
use crate::methods::BadField;
use crate::methods::merge::{Merged, Mix, Named, Own, Setting, Vocabulary, alignments};
use crate::model::{Checkpoint, Config, Outline, Weights};
use crate::tensor::WeightFormat;

pub use average::{Average, Slerp, Stock};
pub use deltas::Changes;
pub use passthrough::{Passthrough, SliceOf};
pub use soup::Soup;

pub(super) const KIND: StageKind = StageKind {
    name: "merge",
    result: "merged",
    methods: METHODS,
    command: "lopper merge MODEL --method METHOD --with MODEL",
    parse: |table| super::method::parse(METHODS, table),
};

/// Every method. Names are mergekit's where it has the method.
pub static METHODS: &[Method] = &[
    method!(Merge<Average>, "linear", "weighted means (model soups, WARM)"),
    method!(Merge<Slerp>, "slerp", "a point on the arc between two"),
    method!(Merge<Changes>, "task_arithmetic", "what each changed of the first, added up"),
    method!(Merge<Changes>, "ties", "the largest changes whose signs agree (TIES)"),
    method!(Merge<Changes>, "dare_linear", "changes dropped by lot, the others scaled up (DARE)"),
    method!(Merge<Changes>, "dare_ties", "the same, of signs that agree"),
    method!(
        Merge<Changes>,
        "breadcrumbs",
        "changes without the largest and the smallest (Model Breadcrumbs)"
    ),
    method!(Merge<Changes>, "breadcrumbs_ties", "the same, of signs that agree"),
    method!(
        Merge<Stock>,
        "model_stock",
        "between the first and the others' mean, by the angle of their changes (Model Stock)"
    ),
    method!(Passthrough, "passthrough", "blocks stacked as they are (depth up-scaling)"),
    method!(
        Soup,
        "soup",
        "means of those that lower the perplexity of a text, one after the other (greedy soup)"
    ),
];

/// The flags of `lopper merge`, and the stage that they ask for.
#[derive(Clone, Debug)]
pub struct Flags {
    /// The stage.
    pub stage: RecipeStage,
    /// Whether any of them was given.
    pub given: bool,
}

const ABOUT: &str = "How models are merged:";

impl clap::Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        flags(METHODS, ABOUT, command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        flags(METHODS, ABOUT, command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let own = flags(METHODS, ABOUT, clap::Command::new(KIND.name));
        let given =
            |id: &str| matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine);
        let given = own.get_arguments().any(|arg| given(arg.get_id().as_str()));
        let stage = stage(KIND.name, METHODS, matches)?;
        Ok(Self { stage: RecipeStage::of(stage), given })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A further model, with what of a method's numbers is its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// `MODEL` of the command line.
    pub model: String,
    /// Its weight in sums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Setting>,
    /// The share of its changes that stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub density: Option<Setting>,
    /// The share of its largest changes that go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gamma: Option<Setting>,
}

/// MODEL, or MODEL@WEIGHT. Other names may hold an @.
fn input(text: &str) -> Result<Input, String> {
    let weighted = text.rsplit_once('@').and_then(|(model, weight)| {
        weight.parse::<Setting>().ok().map(|weight| (model, Some(weight)))
    });
    let (model, weight) = weighted.unwrap_or((text, None));
    match model.is_empty() {
        true => Err("no model".into()),
        false => Ok(Input { model: model.into(), weight, density: None, gamma: None }),
    }
}

/// What is merged, whatever the method.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Inputs {
    /// What is done where a model's vocabulary is not the first one's; without it that is an error
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<Vocabulary>,
    /// The type of merged matrices [default: the first model's, of a quantized one f16]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Plain>,
    /// Blocks of the models: an error if they have more or less
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// A further model; MODEL@WEIGHT gives it a weight of its own
    #[arg(long, value_name = "MODEL", value_parser = input)]
    pub with: Vec<Input>,
}

/// A type without scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Plain {
    /// 5 bits of exponent, 10 of mantissa
    F16,
    /// 8 bits of exponent, 7 of mantissa
    Bf16,
    /// 8 bits of exponent, 23 of mantissa
    F32,
}

impl Plain {
    pub(super) fn format(self) -> WeightFormat {
        match self {
            Plain::F16 => WeightFormat::f16(),
            Plain::Bf16 => WeightFormat::bf16(),
            Plain::F32 => WeightFormat::f32(),
        }
    }
}

impl Inputs {
    fn models(&self) -> Vec<String> {
        self.with.iter().map(|input| input.model.clone()).collect()
    }

    /// The models with their names, the stage's own first.
    fn named<'a, W: Weights>(&'a self, first: &'a dyn Weights, others: &'a [W]) -> Vec<Named<'a>> {
        let names = self.with.iter().map(|input| input.model.as_str());
        let further = names.zip(others).map(|(name, weights)| Named { name, weights });
        std::iter::once(Named { name: OWN, weights: first }).chain(further).collect()
    }
}

/// The name of the model that the stage runs on, in messages.
pub(super) const OWN: &str = "the stage's model";

/// A way to merge.
pub trait Mixing:
    clap::Args
    + Serialize
    + DeserializeOwned
    + std::fmt::Debug
    + Clone
    + PartialEq
    + Send
    + Sync
    + 'static
{
    /// Further models, at least and at most, and the words for them.
    const FURTHER: (usize, usize, &'static str) = (1, usize::MAX, "one further model or more");
    /// Of further models' own numbers, those that the method has beside the weight, and whether it has that.
    const OWN_NUMBERS: &'static [&'static str] = &["weight"];

    /// The expression and its numbers, checked. `method`: the name in recipes; `each`: the numbers of further models.
    fn mix(&self, method: &str, each: Vec<Own>) -> Result<Mix, BadField>;

    /// Whether the seed decides what a method makes.
    fn is_random(_method: &str) -> bool {
        false
    }
}

/// A stage that merges as `M` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, bound = "")]
pub struct Merge<M: Mixing> {
    /// How models are merged
    #[arg(skip)]
    #[serde(default)]
    method: String,
    #[command(flatten)]
    #[serde(flatten)]
    mixing: M,
    #[command(flatten)]
    #[serde(flatten)]
    inputs: Inputs,
}

impl<M: Mixing> OfMethod for Merge<M> {
    fn of_method(self, name: &'static str) -> Self {
        Self { method: name.into(), ..self }
    }
}

/// In the stage's folder: the smallest changes that stay, of whole models.
const THRESHOLDS: &str = "thresholds.json";

impl<M: Mixing> Merge<M> {
    fn mix(&self, seed: u64) -> Result<Mix, BadField> {
        let (least, most, words) = M::FURTHER;
        let with = &self.inputs.with;
        if !(least..=most).contains(&with.len()) {
            return Err(BadField::new("with", words, with.len()));
        }
        let numbers = |input: &Input| {
            [("weight", &input.weight), ("density", &input.density), ("gamma", &input.gamma)]
                .map(|(name, setting)| setting.as_ref().map(|_| name))
        };
        let mut given = with.iter().flat_map(numbers).flatten();
        if let Some(name) = given.find(|name| !M::OWN_NUMBERS.contains(name)) {
            let expected = match M::OWN_NUMBERS {
                [] => format!("models without numbers for {}", self.method),
                names => format!("{} of models for {}", names.join(", "), self.method),
            };
            return Err(BadField::new("with", expected, name));
        }
        let own = |input: &Input| Own {
            weight: input.weight.clone(),
            density: input.density.clone(),
            gamma: input.gamma.clone(),
        };
        let mut mix = self.mixing.mix(&self.method, with.iter().map(own).collect())?;
        check(&mix)?;
        mix.format = self.inputs.dtype.map(Plain::format);
        (mix.layers, mix.seed) = (self.inputs.layers, seed);
        Ok(mix)
    }

    fn merged<'a, W: Weights>(
        &'a self,
        first: &'a dyn Weights,
        others: &'a [W],
        seed: u64,
    ) -> Result<Merged<'a>> {
        let mix = self.mix(seed).map_err(BadField::in_recipe)?;
        Merged::new(self.inputs.named(first, others), mix, self.inputs.vocabulary.is_some())
    }
}

/// An error if a number of a mix is out of its range.
fn check(mix: &Mix) -> Result<(), BadField> {
    let any = |_: f64| true;
    let share = |number: f64| (0.0..=1.0).contains(&number);
    for own in std::iter::once(&mix.all).chain(&mix.each) {
        let settings = [&own.weight, &own.density, &own.gamma];
        let [weight, density, gamma] = settings.map(Option::as_ref);
        weight.map_or(Ok(()), |s| s.check("weight", "a number", any))?;
        density.map_or(Ok(()), |s| s.check("density", "0 to 1", share))?;
        gamma.map_or(Ok(()), |s| s.check("gamma", "0 to 1", share))?;
    }
    mix.t.as_ref().map_or(Ok(()), |s| s.check("t", "0 to 1", share))?;
    mix.lambda.as_ref().map_or(Ok(()), |s| s.check("lambda", "a number", any))
}

impl<M: Mixing> Stage for Merge<M> {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        Needs::default()
    }

    fn others(&self) -> Vec<String> {
        self.inputs.models()
    }

    fn check_others(&self, parent: &Checkpoint, others: &[Checkpoint]) -> Result<Vec<String>> {
        let others: Vec<&Checkpoint> = others.iter().collect();
        Ok(alignments(parent, &others, self.inputs.vocabulary)?.1)
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        self.plan_beside(model, &[])
    }

    fn plan_beside(&self, model: &Outline, others: &[Outline]) -> Result<Planned> {
        let merged = self.merged(model, others, 0)?;
        Ok(Planned {
            peak_device_bytes: 0,
            peak_host_bytes: merged.host_bytes()?,
            changes: merged.changes(&self.method),
            outline: merged.outline(model),
            warnings: merged.warnings(),
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let others: Vec<&Checkpoint> = context.others.iter().collect();
        let (aligned, _) = alignments(context.parent, &others, self.inputs.vocabulary)?;
        let merged = self.merged(model, context.others, context.seed)?.aligned(aligned);
        let thresholds = match context.saved(THRESHOLDS)? {
            Some(found) => found,
            None => {
                let progress = &mut *context.progress;
                let found = merged.thresholds(&mut |done, total| {
                    progress("looking for the largest changes", done, total);
                    interrupt::check()
                })?;
                save(context.folder, THRESHOLDS, &found)?;
                found
            }
        };
        context.write("merging", &merged.trimmed(thresholds))
    }

    fn loses(&self) -> bool {
        false
    }

    fn is_random(&self) -> bool {
        M::is_random(&self.method)
    }
}
