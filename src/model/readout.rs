//! Whole texts: scores by a head over labels, embeddings, and such a head put on a model that foretells tokens.

use std::collections::HashMap;

use super::cache::Cache;
use super::checkpoint::{CopyOf, Weights};
use super::load;
use super::resident::Model;
use crate::data::{BETWEEN, Pooling};
use crate::device::{Device, Random, Tensor};
use crate::error::{Error, Result};
use crate::families::{Config, Readout, Role, TensorSpec, tensor_specs};
use crate::graph::{Pass, Slot};
use crate::interrupt;
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::model::Outline;
use crate::tensor::{DType, Packed, WeightFormat};

/// What is made of some texts.
type Read<'r> = dyn FnMut(&[&[u32]]) -> Result<Vec<f32>> + 'r;

/// Tokens of texts that are scored at once, their filling included.
const AT_ONCE: usize = 8192;

impl Model {
    /// What the head says of each text, of one token at least: as many numbers as it has labels, text after text. Texts go through
    /// the model beside others of about their length. `progress` is told of texts done.
    ///
    /// Errors: a model that foretells tokens; a text that is empty or longer than its context; a score that is not finite.
    pub fn scores(
        &self,
        pass: &Pass<'_>,
        texts: &[&[u32]],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<f32>> {
        let config = self.config();
        let labels = config.reads_out("scores of texts")?.labels.len();
        let scores = self.read_texts(texts, labels, progress, &mut |texts| {
            let (x, length) = self.streams(pass, texts)?;
            Ok(pass.device.read(&self.scores_at(pass, &x, texts, length)?)?.to_f32())
        })?;
        match scores.iter().find(|score| !score.is_finite()) {
            None => Ok(scores),
            Some(score) => {
                Err(Error::NotFinite { what: "score of a text".into(), found: score.to_string() })
            }
        }
    }

    /// The scores of texts, f32 (texts, labels), by the residual stream behind the last block, f32 (texts * length, hidden).
    pub(super) fn scores_at(
        &self,
        pass: &Pass<'_>,
        x: &Tensor,
        texts: &[&[u32]],
        length: usize,
    ) -> Result<Tensor> {
        let (device, config) = (pass.device, &self.config());
        let pooling = config.reads_out("scores of texts")?.pooling;
        let place = |text: &&[u32]| pooling.place(text.len()).expect("a head reads one token");
        let read = |(row, text): (usize, &&[u32])| (row * length + place(text)) as u32;
        let pairs: Vec<(u32, u32)> = texts.iter().enumerate().map(read).zip(0..).collect();
        let width = config.hidden_size;
        let read = device.allocate(DType::F32, &[texts.len(), width], "what texts are read of")?;
        rows(device, x, &read, width, &Rows::upload(device, &pairs)?)?;
        self.head_weights()?.logits_of(pass, &read)
    }

    /// The embedding of each text, of one token at least, f32 (texts, hidden): what its pooling makes of the states of its tokens, of
    /// length 1 where the model says so. Texts and `progress` as with [`Model::scores`].
    ///
    /// Errors: another kind of model; a text that is empty or longer than its context; a value that is not finite.
    pub fn embeddings(
        &self,
        pass: &Pass<'_>,
        texts: &[&[u32]],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<f32>> {
        let config = self.config();
        let width = config.hidden_size;
        let readout = config.embeds("embeddings of texts")?;
        let found = self.read_texts(texts, width, progress, &mut |texts| {
            let (x, length) = self.streams(pass, texts)?;
            let values = pass.device.read(&x)?.to_f32();
            let mut embeddings = Vec::with_capacity(texts.len() * width);
            for (text, row) in texts.iter().zip(values.chunks_exact(length * width)) {
                let mut whole = pooled(readout.pooling, &row[..text.len() * width], width);
                if readout.normalized {
                    let norm = whole.iter().map(|value| value * value).sum::<f64>().sqrt();
                    whole.iter_mut().for_each(|value| *value /= norm.max(1e-12));
                }
                embeddings.extend(whole.iter().map(|value| *value as f32));
            }
            Ok(embeddings)
        })?;
        match found.iter().find(|value| !value.is_finite()) {
            None => Ok(found),
            Some(value) => Err(Error::NotFinite {
                what: "embedding of a text".into(),
                found: value.to_string(),
            }),
        }
    }

    /// What `read` makes of each text, so many numbers, in the order of the texts; it is given some of about one length at a time.
    fn read_texts(
        &self,
        texts: &[&[u32]],
        each: usize,
        progress: &mut dyn FnMut(usize, usize),
        read: &mut Read<'_>,
    ) -> Result<Vec<f32>> {
        let config = self.config();
        let context = config.max_positions;
        if let Some(text) = texts.iter().find(|text| text.is_empty() || text.len() > context) {
            return Err(Error::Argument {
                argument: "a text to be scored".into(),
                expected: format!("1 to {context} tokens, the model's context"),
                found: format!("{} tokens", text.len()),
            });
        }
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|place| texts[*place].len());
        let (mut all, mut left) = (vec![0.0; texts.len() * each], &order[..]);
        while !left.is_empty() {
            interrupt::check()?;
            progress(texts.len() - left.len(), texts.len());
            // As many as the longest of them leaves room for.
            let fits = |count: &usize| count * texts[left[count - 1]].len() <= AT_ONCE;
            let count = (1..=left.len()).take_while(fits).last().unwrap_or(1);
            let (now, rest) = left.split_at(count);
            let some: Vec<&[u32]> = now.iter().map(|place| texts[*place]).collect();
            for (place, found) in now.iter().zip(read(&some)?.chunks_exact(each)) {
                all[place * each..][..each].copy_from_slice(found);
            }
            left = rest;
        }
        Ok(all)
    }

    /// The residual stream of some texts behind the last block, f32 (texts * length, hidden), and the length of their rows. What fills
    /// rows behind shorter texts is seen by none of their tokens.
    fn streams(&self, pass: &Pass<'_>, texts: &[&[u32]]) -> Result<(Tensor, usize)> {
        let config = self.config();
        let length = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        // Where tokens see what is behind them, the end has to be marked.
        let fill = if config.family.bidirectional { BETWEEN } else { 0 };
        let mut ids = Vec::with_capacity(texts.len() * length);
        for text in texts {
            ids.extend_from_slice(text);
            ids.resize(ids.len().next_multiple_of(length), fill);
        }
        let cache = Cache::single_layer(pass.device, config, texts.len(), length, pass.compute)?;
        let x = self.begin(pass, &ids, &cache)?;
        self.through(pass, &x, &cache, &mut |_, _| Ok(()))?;
        Ok((x, length))
    }
}

/// What stands for a text by the states of its tokens, (tokens, width).
fn pooled(pooling: Pooling, states: &[f32], width: usize) -> Vec<f64> {
    let tokens = states.len() / width;
    if let Some(place) = pooling.place(tokens) {
        return states[place * width..][..width].iter().map(|value| f64::from(*value)).collect();
    }
    let all = states.chunks_exact(width);
    let columns = |start: f64, join: fn(f64, f64) -> f64| {
        let mut whole = vec![start; width];
        for token in all {
            whole
                .iter_mut()
                .zip(token)
                .for_each(|(one, value)| *one = join(*one, f64::from(*value)));
        }
        whole
    };
    match pooling {
        Pooling::Max => columns(f64::NEG_INFINITY, f64::max),
        _ => {
            let mut mean = columns(0.0, |sum, value| sum + value);
            mean.iter_mut().for_each(|sum| *sum /= tokens as f64);
            mean
        }
    }
}

impl Model {
    /// Puts the head of other weights of this model, which scores labels, in the place of its own.
    pub fn set_head(&mut self, device: &Device, weights: &dyn Weights) -> Result<()> {
        let embedding = self.embedding.clone();
        self.head = Some(load::head(device, weights, || Ok(embedding))?);
        self.set_config(weights.config().clone());
        Ok(())
    }
}

/// How a head begins that no model has had.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum FreshHead {
    /// Of zeros: every text begins with the same score. (What pools a token before it is drawn: zeros there would learn nothing)
    Zero,
    /// Drawn by the seed, normal of variance 1 / (width + 1) (Stiennon et al. 2020, arXiv 2009.01325, appendix B.1)
    Normal,
}

/// A model with another head that scores labels, in the place of the one that it has. What pools a token for it stays, if there is any and
/// no other is given.
pub struct Headed<'a> {
    weights: &'a dyn Weights,
    outline: Outline,
    head: Head,
}

/// Where a head comes from.
#[derive(Debug)]
enum Head {
    /// It is fresh, drawn by a seed.
    Fresh(FreshHead, u64),
    /// Its tensors, by name.
    Given(HashMap<String, Packed>),
}

impl std::fmt::Debug for Headed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Headed").field("head", &self.head).finish_non_exhaustive()
    }
}

impl<'a> Headed<'a> {
    /// `weights` with a head for `readout`; `seed`: of what is drawn. An error if the family has no class with such a head.
    pub fn new(
        weights: &'a dyn Weights,
        readout: &Readout,
        fresh: FreshHead,
        seed: u64,
    ) -> Result<Self> {
        let outline = Self::outline(&Outline::of(weights)?, readout)?;
        Ok(Self { weights, outline, head: Head::Fresh(fresh, seed) })
    }

    /// `weights` with a head of these tensors, by name.
    pub fn given(
        weights: &'a dyn Weights,
        readout: &Readout,
        tensors: HashMap<String, Packed>,
    ) -> Result<Self> {
        let outline = Self::outline(&Outline::of(weights)?, readout)?;
        let headed = Self { weights, outline, head: Head::Given(tensors) };
        for spec in headed.outline.specs.iter().filter(|spec| headed.is_other(spec)) {
            headed.load(spec)?;
        }
        Ok(headed)
    }

    /// Whether a tensor is not the model's own.
    fn is_other(&self, spec: &TensorSpec) -> bool {
        let mut own = self.weights.specs().iter();
        let given = matches!(&self.head, Head::Given(tensors) if tensors.contains_key(&spec.name));
        given || spec.is_of_score() && !own.any(|own| stays(own) && own.name == spec.name)
    }

    /// The outline of that.
    pub fn outline(before: &Outline, readout: &Readout) -> Result<Outline> {
        let mut after = before.clone();
        let Config { family, .. } = before.config;
        if family.scoring_class().is_none() {
            return Err(Error::Argument {
                argument: "a head that scores texts".into(),
                expected: "a model of one stack of blocks".into(),
                found: format!("one of the family {}", family.name),
            });
        }
        (after.config.readout, after.config.tied) = (Some(readout.clone()), false);
        let stays: Vec<bool> = before.specs.iter().map(stays).collect();
        fn keep<T>(list: &mut Vec<T>, stays: &[bool]) {
            let mut stays = stays.iter();
            list.retain(|_| stays.next() == Some(&true));
        }
        keep(&mut after.specs, &stays);
        keep(&mut after.formats, &stays);
        keep(&mut after.copies, &stays);
        let all = tensor_specs(&after.config).into_iter().filter(TensorSpec::is_of_score);
        for spec in all {
            match after.specs.iter_mut().find(|own| own.name == spec.name) {
                Some(own) => *own = spec,
                None => {
                    after.specs.push(spec);
                    after.formats.push(WeightFormat::f32());
                    after.copies.push(None);
                }
            }
        }
        Ok(after)
    }
}

/// Whether a tensor stays when a model gets another head.
fn stays(spec: &TensorSpec) -> bool {
    spec.layer.is_some() || spec.slot != Slot::Head
}

impl Weights for Headed<'_> {
    fn config(&self) -> &Config {
        &self.outline.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.outline.specs
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        if !self.is_other(spec) {
            return self.weights.load(spec);
        }
        let (fresh, seed) = match &self.head {
            Head::Fresh(fresh, seed) => (*fresh, *seed),
            Head::Given(tensors) => {
                return tensors.get(&spec.name).cloned().ok_or_else(|| Error::Tensor {
                    path: "head that scores labels".into(),
                    tensor: spec.name.clone(),
                    expected: format!("shape {:?}", spec.shape()),
                    found: "none, in the model and beside its head".into(),
                });
            }
        };
        let mut values = vec![0.0; spec.rows * spec.columns];
        let drawn = fresh == FreshHead::Normal || spec.slot == Slot::Pooler;
        if drawn && spec.role != Role::Bias {
            let deviation = (1.0 / (spec.columns as f64 + 1.0)).sqrt() as f32;
            let mut random = Random::new(Random::seed_of(seed, &spec.name));
            values.fill_with(|| deviation * random.normal());
        }
        Ok(Packed::from_f32(&values, spec.rows, spec.columns))
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match self.is_other(spec) {
            true => Ok(WeightFormat::f32()),
            false => self.weights.format(spec),
        }
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        if self.is_other(spec) { None } else { self.weights.copy_of(spec) }
    }
}
