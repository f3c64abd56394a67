//! `upcycle`: a model with experts of one without, or of several ([`crate::methods::merge::Assembled`]). The stage runs on the model
//! that gives all but the feed-forwards; experts are copies of its own, or those of further models.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::merge::{OWN, Plain};
use super::{Context, Needs, Planned, Stage, StageKind, keys, parse};
use crate::error::Result;
use crate::graph::MAX_EXPERTS;
use crate::interrupt;
use crate::methods::BadField;
use crate::methods::merge::{Assembled, Expert, Named, Parts, Routers};
use crate::model::{Cache, Config, Outline, Pass, Role, WeightSource, Weights, run_block};
use crate::text::Tokenizer;

pub(super) const KIND: StageKind = StageKind {
    name: "upcycle",
    result: "upcycled",
    methods: &[],
    command: "",
    parse: parse::<Upcycle>,
};

/// A model with experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Upcycle {
    /// Experts of each block, all copies of its feed-forward [default: 8]
    #[arg(long, conflicts_with = "expert")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<usize>,
    /// Experts that a token goes through
    #[arg(long, default_value_t = Self::default().used)]
    pub used: usize,
    /// What routers begin with [default: hidden where every expert has a prompt, or else random]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// The deviation of routers that are drawn
    #[arg(long, default_value_t = Self::default().deviation)]
    pub deviation: f64,
    /// The deviation of noise that is added to every expert's weights
    #[arg(long, default_value_t = Self::default().noise)]
    pub noise: f64,
    /// The type of matrices [default: as they are; with noise f16 where they are quantized]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Plain>,
    /// Instead of copies: the model whose feed-forwards an expert has, MODEL, or MODEL@PROMPT with a text that it is for; again for
    /// each expert
    #[arg(long, value_name = "MODEL", value_parser = expert)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expert: Vec<ExpertOf>,
}

/// What routers begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// Drawn from a normal distribution
    Random,
    /// Drawn evenly up to 1 / root of the width
    UniformRandom,
    /// The residual stream before each block at the last token of an expert's prompts, of length 1
    Hidden,
    /// Its mean over their tokens
    HiddenAvg,
    /// The sum of their tokens' embeddings, alike in every block
    CheapEmbed,
}

impl Gate {
    fn is_drawn(self) -> bool {
        matches!(self, Gate::Random | Gate::UniformRandom)
    }
}

/// A model that gives an expert.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertOf {
    /// `MODEL` of the command line; absent: the model that the stage runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Texts that it is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// Texts that it is not for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not: Vec<String>,
    /// The deviation of the noise that is added to its weights, instead of that of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
}

/// MODEL, or MODEL@PROMPT.
fn expert(text: &str) -> Result<ExpertOf, String> {
    let (model, prompts) = match text.split_once('@') {
        Some((model, prompt)) => (model, vec![prompt.to_string()]),
        None => (text, Vec::new()),
    };
    match model.is_empty() {
        true => Err("no model".into()),
        false => Ok(ExpertOf { model: Some(model.into()), prompts, ..ExpertOf::default() }),
    }
}

impl Default for Upcycle {
    fn default() -> Self {
        Self {
            experts: None,
            used: 2,
            gate: None,
            deviation: 0.02,
            noise: 0.0,
            dtype: None,
            expert: Vec::new(),
        }
    }
}

/// Experts where none are named and no number is said.
const COPIES: usize = 8;

impl Upcycle {
    fn check(&self) -> Result<(), BadField> {
        let count = self.count();
        if let (Some(experts), false) = (self.experts, self.expert.is_empty()) {
            return Err(BadField::new("experts", "none beside the experts' models", experts));
        }
        if !(1..=MAX_EXPERTS).contains(&count) {
            return Err(BadField::new("experts", format!("1 to {MAX_EXPERTS}"), count));
        }
        if !(1..=count).contains(&self.used) {
            return Err(BadField::new("used", format!("1 to the {count} experts"), self.used));
        }
        let own = self.expert.iter().filter_map(|expert| expert.noise);
        let noises = std::iter::once(self.noise).chain(own).map(|noise| ("noise", noise));
        for (field, value) in noises.chain([("deviation", self.deviation)]) {
            if !(value >= 0.0 && (value as f32).is_finite()) {
                return Err(BadField::new(field, "0 or more", value));
            }
        }
        let without = self.expert.iter().position(|expert| expert.prompts.is_empty());
        match (self.gate().is_drawn(), without) {
            (true, _) => Ok(()),
            (false, None) if !self.expert.is_empty() => Ok(()),
            (false, at) => {
                let found = format!("none of expert {}", at.unwrap_or(0));
                Err(BadField::new("expert", "a prompt of every expert, for routers by them", found))
            }
        }
    }

    fn gate(&self) -> Gate {
        let prompted = |expert: &ExpertOf| !expert.prompts.is_empty();
        let all = !self.expert.is_empty() && self.expert.iter().all(prompted);
        self.gate.unwrap_or(if all { Gate::Hidden } else { Gate::Random })
    }

    fn count(&self) -> usize {
        match self.expert.len() {
            0 => self.experts.unwrap_or(COPIES),
            count => count,
        }
    }

    /// The assembled model. `rows`: of each block a router's, where prompts make them.
    fn assembled<'a, W: Weights>(
        &self,
        model: &'a dyn Weights,
        (names, others): (&'a [String], &'a [W]),
        rows: Vec<Vec<f32>>,
        seed: u64,
    ) -> Result<Assembled<'a>> {
        self.check().map_err(BadField::in_recipe)?;
        let of = |expert: &ExpertOf| {
            let place = |name: &String| names.iter().position(|other| other == name);
            let model = expert.model.as_ref().and_then(place).map_or(0, |place| place + 1);
            Expert { model, noise: expert.noise.unwrap_or(self.noise) }
        };
        let own = Expert { model: 0, noise: self.noise };
        let experts = match self.expert.is_empty() {
            true => vec![own; self.count()],
            false => self.expert.iter().map(of).collect(),
        };
        let width = model.config().hidden_size as f64;
        let routers = match self.gate() {
            Gate::Random => Routers::Normal(self.deviation),
            Gate::UniformRandom => Routers::Uniform(1.0 / width.sqrt()),
            Gate::Hidden | Gate::HiddenAvg | Gate::CheapEmbed => Routers::Given(rows),
        };
        let format = self.dtype.map(Plain::format);
        let further = names.iter().zip(others);
        let further = further.map(|(name, weights)| Named { name: name.as_str(), weights });
        let models = std::iter::once(Named { name: OWN, weights: model }).chain(further).collect();
        Assembled::new(models, Parts { experts, used: self.used, routers, format, seed })
    }

    /// Of each block the routers' rows that the experts' prompts make, as mergekit-moe has them: what is made of the prompts that
    /// an expert is for, less what is made of those that it is not for, of length 1.
    fn rows(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Vec<Vec<f32>>> {
        if self.gate().is_drawn() {
            return Ok(Vec::new());
        }
        let tokenizer = context.parent.tokenizer()?;
        let encode = |texts: &[String]| -> Result<Vec<Vec<u32>>> {
            texts.iter().map(|text| encoded(&tokenizer, text)).collect()
        };
        let (layers, width) = (model.config().layers(), model.config().hidden_size);
        let mut sides = Vec::new();
        for expert in &self.expert {
            sides.extend([encode(&expert.prompts)?, encode(&expert.not)?]);
        }
        // Of each block and each side a vector.
        let made = match self.gate() {
            Gate::CheapEmbed => vec![embeddings(model, &sides)?; layers],
            gate => {
                states(model, &context.pass, &sides, gate == Gate::HiddenAvg, &mut |done, all| {
                    (context.progress)("reading the experts' prompts", done, all);
                })?
            }
        };
        let of_block = |made: Vec<Vec<f64>>| {
            let mut rows = Vec::with_capacity(self.expert.len() * width);
            for sides in made.chunks_exact(2) {
                let pairs = sides[0].iter().zip(&sides[1]);
                let mut vector: Vec<f64> = pairs.map(|(is, is_not)| is - is_not).collect();
                normalize(&mut vector);
                rows.extend(vector.into_iter().map(|value| value as f32));
            }
            rows
        };
        Ok(made.into_iter().map(of_block).collect())
    }
}

/// The tokens of a prompt; an error if it has none.
fn encoded(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(text, false)?;
    match ids.is_empty() {
        false => Ok(ids),
        true => Err(BadField::new("expert", "prompts of a token or more", text).in_recipe()),
    }
}

/// Makes a vector's length 1, unless it is nothing.
fn normalize(vector: &mut [f64]) {
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-8);
    vector.iter_mut().for_each(|value| *value /= length);
}

/// Of each list of texts the sum of all their tokens' embeddings, of length 1; of none zeros.
fn embeddings(model: &dyn Weights, lists: &[Vec<Vec<u32>>]) -> Result<Vec<Vec<f64>>> {
    let spec = model.specs().iter().find(|spec| spec.role == Role::Embedding);
    let table = model.load(spec.expect("a model has an embedding"))?;
    let mut line = vec![0.0f32; table.columns];
    let sum = |texts: &Vec<Vec<u32>>| {
        let mut sum = vec![0.0f64; table.columns];
        for id in texts.iter().flatten() {
            table.decode_row(*id as usize, &mut line);
            sum.iter_mut().zip(&line).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        normalize(&mut sum);
        sum
    };
    Ok(lists.iter().map(sum).collect())
}

/// Of each block and each list of texts the mean over the texts of the residual stream before the block, at the last token or over
/// all of them; of none zeros. A block is on the device at a time.
fn states(
    model: &dyn Weights,
    pass: &Pass<'_>,
    lists: &[Vec<Vec<u32>>],
    all_tokens: bool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Vec<Vec<f64>>>> {
    let (device, config) = (pass.device, model.config());
    let source = WeightSource::Streamed(device, model);
    let (layers, width) = (config.layers(), config.hidden_size);
    let mut streams = Vec::new();
    for (list, texts) in lists.iter().enumerate() {
        for ids in texts {
            streams.push((list, ids.len(), texts.len(), source.embed(pass, ids)?));
        }
    }
    let mut found = Vec::with_capacity(layers);
    for layer in 0..layers {
        interrupt::check()?;
        progress(layer, layers);
        let mut sums = vec![vec![0.0; width]; lists.len()];
        for (list, tokens, texts, x) in &streams {
            let values = device.read(x)?.to_f32();
            let from = if all_tokens { 0 } else { tokens - 1 };
            let parts = (texts * (tokens - from)) as f64;
            for line in values[from * width..].chunks_exact(width) {
                let sum = sums[*list].iter_mut();
                sum.zip(line).for_each(|(sum, value)| *sum += f64::from(*value) / parts);
            }
        }
        found.push(sums);
        if layer + 1 == layers {
            break;
        }
        let block = source.block(layer)?;
        for (_, tokens, _, x) in &streams {
            let cache = Cache::single_layer(device, config, 1, *tokens, pass.compute)?;
            run_block(pass, config, layer, &block, x, cache.layer_for(layer, *tokens), None)?;
        }
    }
    Ok(found)
}

impl Stage for Upcycle {
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
        let mut names: Vec<String> = Vec::new();
        for name in self.expert.iter().filter_map(|expert| expert.model.as_ref()) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        self.plan_beside(model, &[])
    }

    fn plan_beside(&self, model: &Outline, others: &[Outline]) -> Result<Planned> {
        let names = self.others();
        let assembled = self.assembled(model, (&names, others), Vec::new(), 0)?;
        let (_, streamed) = model.evaluation_bytes(0);
        Ok(Planned {
            outline: assembled.outline(model)?,
            changes: assembled.changes(),
            peak_device_bytes: if self.gate().is_drawn() { 0 } else { streamed },
            peak_host_bytes: 12 * model.largest(),
            warnings: assembled.warnings(),
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let rows = self.rows(model, context)?;
        let names = self.others();
        let others = (names.as_slice(), context.others);
        let assembled = self.assembled(model, others, rows, context.seed)?;
        context.write("assembling", &assembled)
    }

    fn loses(&self) -> bool {
        false
    }

    fn keeps_channels(&self) -> bool {
        false
    }

    fn is_random(&self) -> bool {
        let noise = self.expert.iter().any(|expert| expert.noise.unwrap_or(0.0) > 0.0);
        self.gate().is_drawn() || self.noise > 0.0 || noise
    }
}
