//! The shape of a model: sizes, head counts, position encoding. Read from `config.json` or from GGUF metadata.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::rope::{Rope, RopeScaling};
use super::{FAMILIES, Family};
use crate::data::{Pooling, unnamed_label};
use crate::error::{Error, Result};
use crate::graph::{Attention, BlockShape, DistanceBuckets, Experts, MAX_EXPERTS, Part, Slot};
use crate::kernels::attention::MAX_HEAD_DIM;
use crate::kernels::quantize::inputs::InputRounding;
use crate::tensor::{InputType, WeightFormat};

/// The numbers in which blocks of one model may differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockDims {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of the query heads.
    pub kv_heads: usize,
    /// Channels of the feed-forward.
    pub intermediate_size: usize,
    /// Tokens that a token attends to, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Which of [`Config::ropes`] rotates its queries and keys.
    pub rope: usize,
    /// Where the inputs of its layers are rounded by scales that are given ([`Config::input_type`]): those of what goes into queries,
    /// keys and values, into attention's output, into gate and up, and into the down projection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_scales: Option<[f32; 4]>,
}

impl BlockDims {
    /// A block with attention to all tokens and the model's first rotary encoding.
    pub fn new(heads: usize, kv_heads: usize, intermediate_size: usize) -> Self {
        Self { heads, kv_heads, intermediate_size, window: None, rope: 0, input_scales: None }
    }

    /// Blocks from lists of one number a layer.
    pub(super) fn zip(
        heads: Vec<usize>,
        kv_heads: Vec<usize>,
        intermediate: Vec<usize>,
    ) -> Vec<Self> {
        let lists = heads.into_iter().zip(kv_heads).zip(intermediate);
        lists
            .map(|((heads, kv_heads), intermediate)| Self::new(heads, kv_heads, intermediate))
            .collect()
    }

    fn same_widths(&self, other: &Self) -> bool {
        let of = |block: &Self| (block.heads, block.kv_heads, block.intermediate_size);
        of(self) == of(other)
    }
}

/// The place of a layer's in [`BlockDims::input_scales`]; `None`: none is given for it, and each token has its own.
pub fn input_place(slot: Slot) -> Option<usize> {
    const PLACES: [Slot; 4] = [Slot::Query, Slot::Output, Slot::Gate, Slot::Down];
    PLACES.iter().position(|place| *place == slot.input())
}

/// What a model with an encoder has beside its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoder {
    /// The encoder's blocks: the model's first. The others are the decoder's, at least one.
    pub layers: usize,
    /// The buckets of both stacks' biases of scores by distance.
    pub buckets: DistanceBuckets,
    /// The token that the decoder begins with.
    pub start: u32,
}

/// What is read of a text as a whole, behind the last block and the final norm, by a model that does not foretell tokens: a
/// classifier, or a reward model, which is one of a single label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readout {
    /// Which tokens it is read of.
    pub pooling: Pooling,
    /// The labels that the head scores; none: there is no head, and what is read is the text's embedding.
    pub labels: Vec<String>,
    /// Of an embedding, whether it is made one of length 1.
    #[serde(default)]
    pub normalized: bool,
}

impl Readout {
    /// A head that scores labels; without names one that scores how good a text is, under transformers' name for one label.
    pub fn scores(pooling: Pooling, names: &[String]) -> Self {
        let labels = if names.is_empty() { vec![unnamed_label(0)] } else { names.to_vec() };
        Self { pooling, labels, normalized: false }
    }
}

/// The shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its family: names, block function, what it takes for granted.
    pub family: &'static Family,
    /// Columns of the residual stream.
    pub hidden_size: usize,
    /// Every block: as many as there are layers.
    pub blocks: Vec<BlockDims>,
    /// The encoder, of a model that has one.
    pub encoder: Option<Encoder>,
    /// The experts of every block, whose feed-forward channels are those of one; `None`: a block has one feed-forward.
    pub experts: Option<Experts>,
    /// The factor that the load-balancing loss of experts has in training, unless another is asked for.
    pub balance: f64,
    /// Columns of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context that the model was made for.
    pub max_positions: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Rotary encodings; a block says which one is its own.
    pub ropes: Vec<Rope>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether each half of a block has a basis of the residual stream of its own, and a product that takes the stream there.
    pub shortcuts: bool,
    /// What scores of attention are multiplied by; `None`: 1 / sqrt(head_dim).
    pub attention_scale: Option<f64>,
    /// c of c tanh(score / c) in attention (Gemma 2, arXiv 2408.00118, section 2).
    pub attention_soft_cap: Option<f64>,
    /// c of c tanh(logit / c) behind the head.
    pub logit_soft_cap: Option<f64>,
    /// Kinds of texts that have an embedding, of a family that tells them apart; or 0.
    pub token_types: usize,
    /// What the inputs of its blocks' linear layers are rounded to, of those whose weights are codes; `None`: they are taken as they are.
    pub input_type: Option<InputType>,
    /// What its head reads of a text; `None`: it foretells each next token, over the vocabulary.
    pub readout: Option<Readout>,
}

/// Sizes above this are taken for damage: no model has them, and products of two still fit 64 bits.
pub(super) const MAX_SIZE: u64 = 1 << 28;
/// More layers than this are damage too.
pub(super) const MAX_LAYERS: usize = 10_000;
/// And more weights in all: with fewer, no product of sizes or count of bytes leaves 64 bits, in whatever format.
const MAX_WEIGHTS: u64 = 1 << 48;

/// What transformers takes for the factor of the load-balancing loss where a configuration is silent.
pub(super) const USUAL_BALANCE: f64 = 0.001;

impl Config {
    /// A warning for windows longer than the model was made for.
    pub fn beyond_context(&self, ctx: usize) -> Option<String> {
        let context = self.max_positions;
        (ctx > context).then(|| {
            format!("windows of {ctx} tokens are longer than the model's context of {context}")
        })
    }

    /// The configuration of a model with experts whose blocks are these but for their feed-forwards; `None` if no family has such, or
    /// these have experts.
    pub fn with_experts(&self, experts: Experts) -> Option<Config> {
        let family = FAMILIES.iter().find(|family| family.dense.contains(&self.family.name))?;
        let (experts, balance) = (Some(experts), USUAL_BALANCE);
        Some(Config { family, experts, balance, ..self.clone() })
    }

    /// How the inputs of a linear layer of a block are rounded, if its weight has the format `weight`.
    pub fn input_rounding(
        &self,
        layer: usize,
        slot: Slot,
        weight: WeightFormat,
    ) -> Option<InputRounding> {
        let ty = self.input_type.filter(|_| weight.ty.bits <= 8)?;
        let scale = match (self.blocks[layer].input_scales, input_place(slot)) {
            (Some(scales), Some(place)) => Some(scales[place]),
            _ => None,
        };
        Some(InputRounding { ty, scale })
    }

    /// Blocks.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks but for those of an encoder.
    pub fn decoder_layers(&self) -> usize {
        self.layers() - self.encoder.map_or(0, |encoder| encoder.layers)
    }

    /// The part of a row of tokens that a block takes, of a model with an encoder.
    pub fn part(&self, layer: usize) -> Option<Part> {
        self.encoder.map(|encoder| match layer < encoder.layers {
            true => Part::Source,
            false => Part::Target,
        })
    }

    /// The first block of a block's stack.
    pub fn first_of_stack(&self, layer: usize) -> usize {
        self.encoder.filter(|encoder| layer >= encoder.layers).map_or(0, |encoder| encoder.layers)
    }

    /// Whether its tokens, or those of a part of its rows, see what stands behind them.
    pub fn has_encoder(&self) -> bool {
        self.encoder.is_some() || self.family.bidirectional
    }

    /// An error that names the family, if it has an encoder: `what` is made for decoders only, for that reason.
    pub fn without_encoder(&self, what: &str, why: &str) -> Result<()> {
        match self.has_encoder() {
            false => Ok(()),
            true => Err(Error::Argument {
                argument: what.into(),
                expected: format!("a model without an encoder: {}", self.why_not(why)),
                found: format!("one of the family {}", self.family.name),
            }),
        }
    }

    /// Why something is not made for a model with an encoder: `why`, where it has two stacks.
    pub fn why_not<'w>(&self, why: &'w str) -> &'w str {
        let one = "it is made for blocks whose tokens see none behind them";
        if self.encoder.is_some() { why } else { one }
    }

    /// What hubs call what it does. An encoder reads one text and the decoder writes another.
    pub fn task(&self) -> &'static str {
        match (&self.readout, self.encoder) {
            (Some(readout), _) if readout.labels.is_empty() => "sentence-similarity",
            (Some(_), _) => "text-classification",
            (None, Some(_)) => "text2text-generation",
            (None, None) => "text-generation",
        }
    }

    /// Whether there is a head: a model that embeds texts has none.
    pub fn has_head(&self) -> bool {
        self.readout.as_ref().is_none_or(|readout| !readout.labels.is_empty())
    }

    /// Numbers that the head gives for a token: the vocabulary's, or those of labels.
    pub fn head_rows(&self) -> usize {
        self.readout.as_ref().map_or(self.vocab_size, |readout| readout.labels.len())
    }

    /// c of c tanh(x / c) behind the head. Scores have none, as in transformers.
    pub fn head_soft_cap(&self) -> Option<f32> {
        let cap = self.logit_soft_cap.filter(|_| self.readout.is_none());
        cap.map(|cap| cap as f32)
    }

    /// An error if its head scores texts: `what` is for models that foretell tokens.
    pub fn foretells(&self, what: &str) -> Result<()> {
        match &self.readout {
            None => Ok(()),
            Some(readout) => Err(Error::Argument {
                argument: what.into(),
                expected: "a model that foretells tokens, with a head over the vocabulary".into(),
                found: match &readout.labels[..] {
                    [] => "one that embeds texts; lopper embed is for it".into(),
                    [_] => "one that scores texts; eval --preferences measures it".into(),
                    labels => format!(
                        "one that scores labels ({}); eval --task measures it",
                        labels.join(", ")
                    ),
                },
            }),
        }
    }

    /// What it reads of texts; an error if it has no head that scores them.
    pub fn reads_out(&self, what: &str) -> Result<&Readout> {
        let found = match &self.readout {
            Some(readout) if !readout.labels.is_empty() => return Ok(readout),
            Some(_) => "one that embeds texts",
            None => "one that foretells tokens; tune --score-head puts such a head on it",
        };
        Err(Error::Argument {
            argument: what.into(),
            expected: "a model that scores texts, as a reward model does".into(),
            found: found.into(),
        })
    }

    /// What it makes embeddings of texts of; an error if it makes none.
    pub fn embeds(&self, what: &str) -> Result<&Readout> {
        match &self.readout {
            Some(readout) if readout.labels.is_empty() => Ok(readout),
            _ => Err(Error::Argument {
                argument: what.into(),
                expected: "a sentence encoder, as BertModel is one".into(),
                found: format!("a model of the family {} with a head", self.family.name),
            }),
        }
    }

    /// The same for a reward model: one score a text.
    pub fn rewards(&self, what: &str) -> Result<()> {
        let labels = &self.reads_out(what)?.labels;
        match labels.len() {
            1 => Ok(()),
            count => Err(Error::Argument {
                argument: what.into(),
                expected: "a reward model, whose head has one label".into(),
                found: format!("one of {count} labels ({})", labels.join(", ")),
            }),
        }
    }

    /// The widths of every block, if all are alike. Windows and rotary encodings may differ.
    pub fn uniform(&self) -> Option<BlockDims> {
        let first = *self.blocks.first()?;
        let alike = |block: &BlockDims| block.same_widths(&first);
        self.blocks.iter().all(alike).then_some(first)
    }

    /// The largest of each width, for buffers that serve all blocks.
    pub fn widest(&self) -> BlockDims {
        let most =
            |width: fn(&BlockDims) -> usize| self.blocks.iter().map(width).max().unwrap_or(0);
        let (heads, kv_heads) = (most(|widths| widths.heads), most(|widths| widths.kv_heads));
        BlockDims::new(heads, kv_heads, most(|widths| widths.intermediate_size))
    }

    /// What the block function and its executors need to know of a layer.
    pub fn block_shape(&self, layer: usize) -> BlockShape {
        let block = &self.blocks[layer];
        let scale = self.attention_scale;
        BlockShape {
            attention: Attention {
                query: block.heads,
                kv: block.kv_heads,
                dim: self.head_dim,
                scale: scale.unwrap_or_else(|| 1.0 / (self.head_dim as f64).sqrt()) as f32,
                window: block.window,
                soft_cap: self.attention_soft_cap.map(|cap| cap as f32),
            },
            rope: block.rope,
            activation: self.family.activation,
            experts: self.experts,
            part: self.part(layer),
            first: layer == 0,
        }
    }

    /// What embeddings are multiplied by.
    pub fn embedding_scale(&self) -> Option<f32> {
        let scaled = self.family.scaled_embedding;
        scaled.then(|| (self.hidden_size as f32).sqrt())
    }

    /// An error if a Hugging Face folder cannot state the widths; `path` is the model's.
    pub fn check_plain(&self, path: &Path) -> Result<()> {
        self.without_shortcuts(path, "a Hugging Face folder")?;
        match self.uniform() {
            Some(_) => Ok(()),
            None => Err(Error::Unsupported {
                path: path.into(),
                what: "a Hugging Face folder of layers of several widths".into(),
                why: "a stock configuration states one width for all; use gguf or packed".into(),
            }),
        }
    }

    /// An error if `format` has no word for shortcuts: whoever opened it would leave them out.
    pub(super) fn without_shortcuts(&self, path: &Path, format: &str) -> Result<()> {
        match self.shortcuts {
            false => Ok(()),
            true => Err(Error::Unsupported {
                path: path.into(),
                what: format!("{format} of a model whose residual stream changes its basis"),
                why: "no other program knows products on the residual stream; use packed, or prune with --form global".into(),
            }),
        }
    }

    /// About how many weights the sizes make; `None` beyond 64 bits.
    pub(super) fn weights(&self) -> Option<u64> {
        let product = |a: usize, b: usize| (a as u64).checked_mul(b as u64);
        let rows = self.blocks.iter().try_fold(2 * self.vocab_size as u64, |rows, block| {
            let attention = product(2, block.heads)?.checked_add(product(2, block.kv_heads)?)?;
            // The decoder's blocks have it twice; that all do is no harm.
            let attention = attention.checked_mul(if self.encoder.is_some() { 2 } else { 1 })?;
            let attention = attention.checked_mul(self.head_dim as u64)?;
            let experts = self.experts.map_or(1, |experts| experts.count as u64);
            let channels = product(3, block.intermediate_size)?.checked_mul(experts)?;
            rows.checked_add(attention)?.checked_add(channels)
        });
        rows?.checked_mul(self.hidden_size as u64)
    }

    /// Itself, if it makes sense. `kv_heads`: the key to name where the number of key and value heads is wrong.
    pub(super) fn check(self, path: &Path, kv_heads: &str) -> Result<Self> {
        let wrong = |key: &str, expected: String, found: usize| {
            Err(Error::Key {
                path: path.into(),
                key: key.into(),
                expected,
                found: found.to_string(),
            })
        };
        let uneven = |widths: &BlockDims| !widths.heads.is_multiple_of(widths.kv_heads);
        if let Some(layer) = self.blocks.iter().position(uneven) {
            let widths = self.blocks[layer];
            let place = match self.uniform() {
                Some(_) => String::new(),
                None => format!(" in layer {layer}"),
            };
            let expected = format!("a divisor of {} query heads{place}", widths.heads);
            return wrong(kv_heads, expected, widths.kv_heads);
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim > MAX_HEAD_DIM {
            return wrong(
                "head_dim",
                format!("an even number up to {MAX_HEAD_DIM}"),
                self.head_dim,
            );
        }
        if self.weights().is_none_or(|weights| weights > MAX_WEIGHTS.min(usize::MAX as u64 / 8)) {
            return Err(Error::Key {
                path: path.into(),
                key: "sizes".into(),
                expected: format!("fewer than {MAX_WEIGHTS} weights in all"),
                found: format!(
                    "{} layers of {} columns, {:?} and {} tokens",
                    self.layers(),
                    self.hidden_size,
                    self.widest(),
                    self.vocab_size
                ),
            });
        }
        if let (Some(experts), Some([count, used])) = (self.experts, self.family.experts_keys) {
            if experts.count > MAX_EXPERTS {
                return wrong(count[0], format!("at most {MAX_EXPERTS}"), experts.count);
            }
            if experts.used > experts.count {
                return wrong(
                    used[0],
                    format!("at most the {} experts", experts.count),
                    experts.used,
                );
            }
        }
        if let Some(Encoder { layers, buckets: DistanceBuckets { count, far }, start }) =
            self.encoder
        {
            if layers == 0 || layers >= self.layers() {
                let expected = "blocks of an encoder and of a decoder".into();
                return wrong("layers", expected, layers);
            }
            let most = DistanceBuckets::MOST;
            if !(4..=most).contains(&count) || !count.is_multiple_of(2) {
                let expected = format!("an even number of buckets from 4 to {most}");
                return wrong("relative_attention_num_buckets", expected, count);
            }
            if far <= count / 2 || far > most {
                let expected = format!("more than half of the {count} buckets, at most {most}");
                return wrong("relative_attention_max_distance", expected, far);
            }
            if start as usize >= self.vocab_size {
                let expected = format!("a token of the vocabulary's {}", self.vocab_size);
                return wrong("decoder_start_token_id", expected, start as usize);
            }
            if let Some(block) = self.blocks.iter().find(|block| block.heads != block.kv_heads) {
                let expected = format!("as many as the {} query heads", block.heads);
                return wrong(kv_heads, expected, block.kv_heads);
            }
            let heads = self.blocks[0].heads;
            if let Some(block) = self.blocks.iter().find(|block| block.heads != heads) {
                let expected = format!("{heads} in every layer, whose bias of scores they share");
                return wrong(kv_heads, expected, block.heads);
            }
        }
        for rope in &self.ropes {
            if let RopeScaling::Divisors(divisors) = &rope.scaling
                && divisors.len() != self.head_dim / 2
            {
                return wrong(
                    "rope_freqs.weight",
                    format!("{} values", self.head_dim / 2),
                    divisors.len(),
                );
            }
        }
        Ok(self)
    }
}
