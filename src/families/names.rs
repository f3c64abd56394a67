//! Tensor names: what each tensor of a model is called, what it is for, what shape it has.
//!
//! The names of Hugging Face's checkpoints are Lopper's own; GGUF's are translated at the border. A family lists the tensors
//! of its block as [`Row`]s; what stands before and after the blocks is common to all decoders ([`DECODER`]), and a family with an
//! encoder has names of its own for it.

use super::config::{BlockDims, Config};
use super::groups::PrunableDim;
use super::{FAMILIES, Family};
use crate::graph::{Part, Slot};

/// The names of what stands outside blocks, and what names of blocks begin with, before their number.
#[derive(Debug)]
pub struct Names {
    /// Blocks, in Hugging Face's checkpoints and in GGUF; of a model with an encoder those of the decoder.
    blocks: [&'static str; 2],
    /// Blocks of the encoder.
    encoder_blocks: Option<[&'static str; 2]>,
    embedding: Row,
    /// The norm behind the last block, of a family that has one.
    final_norm: Option<Row>,
    head: Row,
    score: Row,
    /// What takes the token that a text is read at to the head that scores labels, of a family that has it.
    pooler: Option<Row>,
    /// What transformers puts in front of all names but those of a head that scores labels, where there is one.
    wrapper: &'static str,
}

impl Names {
    /// What names of a block begin with, and its number.
    fn block(&self, config: &Config, layer: usize) -> ([&'static str; 2], usize) {
        match (&config.encoder, self.encoder_blocks) {
            (Some(encoder), Some(names)) if layer < encoder.layers => (names, layer),
            (Some(encoder), _) => (self.blocks, layer - encoder.layers),
            (None, _) => (self.blocks, layer),
        }
    }
}

/// What Llama calls them, and GGUF every decoder.
pub static DECODER: Names = Names {
    blocks: ["model.layers.", "blk."],
    encoder_blocks: None,
    embedding: EMBEDDING,
    final_norm: Some(FINAL_NORM),
    head: HEAD,
    score: SCORE,
    pooler: None,
    wrapper: "",
};

/// T5's.
pub static ENCODER_DECODER: Names = Names {
    blocks: ["decoder.block.", "dec.blk."],
    encoder_blocks: Some(["encoder.block.", "enc.blk."]),
    embedding: Row { hf: "shared", ..EMBEDDING },
    final_norm: Some(Row { hf: "decoder.final_layer_norm", gguf: "dec.output_norm", ..FINAL_NORM }),
    head: HEAD,
    score: SCORE,
    pooler: None,
    wrapper: "",
};

/// BERT's.
pub static BERT: Names = Names {
    blocks: ["encoder.layer.", "blk."],
    encoder_blocks: None,
    embedding: Row { hf: "embeddings.word_embeddings", ..EMBEDDING },
    final_norm: None,
    head: HEAD,
    score: Row { hf: "classifier", ..SCORE }.biased(),
    pooler: Some(
        Row::linear(Slot::Pooler, "pooler.dense", "cls", Dim::Hidden, Dim::Hidden)
            .biased()
            .of_role(Role::Score),
    ),
    wrapper: "bert.",
};

/// What module names of blocks begin with in any family, before the layer's number.
fn beginnings() -> impl Iterator<Item = &'static str> {
    let names = FAMILIES.iter().map(|family| family.names);
    names
        .flat_map(|names| [Some(names.blocks[0]), names.encoder_blocks.map(|names| names[0])])
        .flatten()
}

/// Whether a module of that name is of a head that scores labels, or has one in it, in any family.
pub fn is_of_score(module: &str) -> bool {
    let rows = FAMILIES.iter().flat_map(|family| [Some(family.names.score), family.names.pooler]);
    let within = |row: Row| row.hf.strip_prefix(module);
    rows.flatten()
        .any(|row| within(row).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Whether a tensor, or a module, of that name is of a block.
pub fn is_of_block(name: &str) -> bool {
    beginnings().any(|begin| name.starts_with(begin))
}

/// Patterns of the names of all tensors of blocks, in any family.
pub fn block_patterns() -> Vec<String> {
    let mut patterns: Vec<String> = Vec::new();
    for begin in beginnings() {
        let pattern = format!("{begin}*");
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    patterns
}

/// The module name of a layer.
pub fn layer_name(config: &Config, layer: usize) -> String {
    let (names, number) = config.family.names.block(config, layer);
    format!("{}{number}", names[0])
}

/// A tensor's name, or a module's, without its layer: equal for the same tensor of every layer.
pub fn without_layer(name: &str) -> String {
    let split = beginnings().find_map(|begin| {
        name.strip_prefix(begin)
            .and_then(|rest| rest.split_once('.'))
            .map(|(_, rest)| (begin, rest))
    });
    match split {
        Some((begin, rest)) => format!("{begin}*.{rest}"),
        None => name.to_string(),
    }
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The token embedding.
    Embedding,
    /// A linear layer of a block.
    Linear,
    /// The linear layer of a block that says which experts a token goes to. It is small, and a little error changes much: no
    /// method makes it smaller.
    Router,
    /// The output head.
    Head,
    /// The head that scores labels of a text, or what pools a token for it. It is small, and its errors are those of the scores: no
    /// method makes it smaller.
    Score,
    /// The weight of a norm.
    Norm,
    /// A bias of a linear layer.
    Bias,
    /// A table of what is added to scores of attention by distance.
    PositionBias,
    /// A table of what is added to embeddings, by place or by kind of text: kept as it is, as small as it is.
    Table,
}

/// A dimension of a tensor, in terms of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Columns of the residual stream.
    Hidden,
    /// Channels of the feed-forward.
    Intermediate,
    /// Columns of all query heads.
    Query,
    /// Columns of all key (or value) heads.
    KeyValue,
    /// Columns of one head.
    Head,
    /// Experts of a block.
    Experts,
    /// Query heads of all blocks of a stack together: one block's cannot be cut.
    Heads,
    /// Buckets of distances.
    Buckets,
    /// Tokens.
    Vocabulary,
    /// Labels of a head that scores texts.
    Labels,
    /// Places that have an embedding.
    Positions,
    /// Kinds of texts that have one.
    TokenTypes,
}

impl Dim {
    /// The width that is pruned when channels of this dimension are cut.
    fn prunable(self) -> Option<PrunableDim> {
        match self {
            Dim::Hidden => Some(PrunableDim::Hidden),
            Dim::Intermediate => Some(PrunableDim::FeedForward),
            Dim::Query => Some(PrunableDim::Head),
            Dim::KeyValue => Some(PrunableDim::KvGroup),
            Dim::Head
            | Dim::Experts
            | Dim::Heads
            | Dim::Buckets
            | Dim::Vocabulary
            | Dim::Labels
            | Dim::Positions
            | Dim::TokenTypes => None,
        }
    }

    /// Its size in a block of these widths; outside the blocks they do not matter.
    fn size(self, config: &Config, widths: BlockDims) -> usize {
        match self {
            Dim::Hidden => config.hidden_size,
            Dim::Intermediate => widths.intermediate_size,
            Dim::Query => widths.heads * config.head_dim,
            Dim::KeyValue => widths.kv_heads * config.head_dim,
            Dim::Head => config.head_dim,
            Dim::Experts => config.experts.map_or(0, |experts| experts.count),
            Dim::Heads => widths.heads,
            Dim::Buckets => config.encoder.map_or(0, |encoder| encoder.buckets.count),
            Dim::Vocabulary => config.vocab_size,
            Dim::Labels => config.head_rows(),
            Dim::Positions => config.max_positions,
            Dim::TokenTypes => config.token_types,
        }
    }
}

/// Whether a linear layer has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// If the checkpoint has one.
    Optional,
    /// Always.
    Required,
    /// Never.
    None,
}

/// One tensor of a family's block: a linear layer with its bias, or a norm.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    slot: Slot,
    hf: &'static str,
    gguf: &'static str,
    role: Role,
    rows: Dim,
    columns: Dim,
    bias: Bias,
    interleaved: bool,
    stack: Stack,
}

/// Which blocks of a stack have a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    /// Every block one of its own.
    Each,
    /// The first has one, which is that of all.
    First,
    /// The same, and its name is that of no block.
    Outside,
}

impl Row {
    /// A linear layer: its slot, its module's name behind the layer's in Hugging Face's checkpoints, its name in GGUF, its
    /// output and its input dimension.
    pub const fn linear(
        slot: Slot,
        hf: &'static str,
        gguf: &'static str,
        rows: Dim,
        columns: Dim,
    ) -> Self {
        Self {
            slot,
            hf,
            gguf,
            role: Role::Linear,
            rows,
            columns,
            bias: Bias::Optional,
            interleaved: false,
            stack: Stack::Each,
        }
    }

    /// A norm over a dimension.
    pub const fn norm(slot: Slot, hf: &'static str, gguf: &'static str, over: Dim) -> Self {
        Self { role: Role::Norm, bias: Bias::None, ..Self::linear(slot, hf, gguf, over, over) }
    }

    /// A layer norm of the residual stream, with its bias.
    pub const fn layer_norm(slot: Slot, hf: &'static str, gguf: &'static str) -> Self {
        Self::norm(slot, hf, gguf, Dim::Hidden).biased()
    }

    /// A table of rows that are added to embeddings, of the first block, whose name is that of none.
    pub const fn table(slot: Slot, hf: &'static str, gguf: &'static str, rows: Dim) -> Self {
        let row = Self::linear(slot, hf, gguf, rows, Dim::Hidden).unbiased();
        Self { role: Role::Table, stack: Stack::Outside, ..row }
    }

    /// The router of a block with experts, without a bias.
    pub const fn router(hf: &'static str, gguf: &'static str) -> Self {
        let row = Self::linear(Slot::Router, hf, gguf, Dim::Experts, Dim::Hidden);
        Self { role: Role::Router, ..row }
    }

    /// A linear layer of every expert, without a bias. `{}` in its names is the expert's number.
    pub const fn expert(
        slot: Slot,
        hf: &'static str,
        gguf: &'static str,
        rows: Dim,
        columns: Dim,
    ) -> Self {
        Self { bias: Bias::None, ..Self::linear(slot, hf, gguf, rows, columns) }
    }

    /// Whether every expert has one.
    fn is_of_experts(&self) -> bool {
        self.slot.expert().is_some()
    }

    /// Its name in Hugging Face's checkpoints or in GGUF, of an expert.
    fn name(name: &str, slot: Slot) -> String {
        match slot.expert() {
            Some(expert) => name.replace("{}", &expert.to_string()),
            None => name.to_string(),
        }
    }

    /// The same, and GGUF stores the rows of each head with pairs side by side, Hugging Face with halves apart.
    pub const fn interleaved(self) -> Self {
        Self { interleaved: true, ..self }
    }

    /// The same, with a bias that is always there.
    pub const fn biased(self) -> Self {
        Self { bias: Bias::Required, ..self }
    }

    /// The same, without a bias.
    pub const fn unbiased(self) -> Self {
        Self { bias: Bias::None, ..self }
    }

    /// A bias of scores by distance, which all blocks of a stack take from the first one's tensors.
    pub const fn position_bias(hf: &'static str, gguf: &'static str) -> Self {
        let row = Self::linear(Slot::PositionBias, hf, gguf, Dim::Buckets, Dim::Heads);
        Self { role: Role::PositionBias, stack: Stack::First, ..row }
    }

    /// The same of a norm whose name is that of no block: all blocks of a stack take it.
    pub const fn of_stack(self) -> Self {
        Self { stack: Stack::Outside, ..self }
    }

    const fn of_role(self, role: Role) -> Self {
        Self { role, ..self }
    }
}

const EMBEDDING: Row =
    Row::linear(Slot::Embedding, "model.embed_tokens", "token_embd", Dim::Vocabulary, Dim::Hidden)
        .of_role(Role::Embedding);
const FINAL_NORM: Row = Row::norm(Slot::FinalNorm, "model.norm", "output_norm", Dim::Hidden);
const HEAD: Row =
    Row::linear(Slot::Head, "lm_head", "output", Dim::Vocabulary, Dim::Hidden).of_role(Role::Head);

/// What transformers' classes for sequence classification have in the head's place. (llama.cpp's name.)
const SCORE: Row = Row::linear(Slot::Head, "score", "cls.output", Dim::Labels, Dim::Hidden)
    .unbiased()
    .of_role(Role::Score);

/// The products that a residual stream of several bases goes through, each behind the layer whose result is added then.
const SHORTCUTS: [(Slot, Row); 2] = [
    (
        Slot::Output,
        Row::linear(
            Slot::AttentionShortcut,
            "attn_shortcut",
            "attn_shortcut",
            Dim::Hidden,
            Dim::Hidden,
        ),
    ),
    (
        Slot::Down,
        Row::linear(
            Slot::FeedForwardShortcut,
            "mlp_shortcut",
            "ffn_shortcut",
            Dim::Hidden,
            Dim::Hidden,
        ),
    ),
];

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// The name in Hugging Face's checkpoints.
    pub name: String,
    /// The name in GGUF files, `blk.0.ffn_up.weight`.
    pub gguf: String,
    /// Its place in the block, or before or after the blocks; that of its linear layer for a bias.
    pub slot: Slot,
    /// The block that it is part of, if it is.
    pub layer: Option<usize>,
    /// What it is for.
    pub role: Role,
    /// Output features; 1 for a vector.
    pub rows: usize,
    /// Input features, or the length of a vector.
    pub columns: usize,
    /// What its rows are channels of, if they can be cut; of a vector nothing.
    pub row_width: Option<PrunableDim>,
    /// What its columns, or a vector's values, are channels of.
    pub column_width: Option<PrunableDim>,
    /// The head size within which GGUF interleaves rows (or a bias' values), if it does.
    pub interleaved: Option<usize>,
    /// Whether a checkpoint may do without it.
    pub optional: bool,
    /// What Hugging Face's checkpoints leave out of a norm's weight: there it is stored less this.
    pub offset: f32,
}

impl TensorSpec {
    /// The tensor of a row; `slot` is the row's, of an expert's row that of the expert.
    fn new(
        (row, slot): (&Row, Slot),
        layer: Option<usize>,
        bias: bool,
        config: &Config,
        widths: BlockDims,
    ) -> Self {
        let suffix = if bias { "bias" } else { "weight" };
        let (hf, gguf) = match layer.filter(|_| row.stack != Stack::Outside) {
            Some(layer) => {
                let ([hf, gguf], number) = config.family.names.block(config, layer);
                (format!("{hf}{number}."), format!("{gguf}{number}."))
            }
            None => Default::default(),
        };
        let vector = bias || row.role == Role::Norm;
        let output = row.rows.size(config, widths);
        let (rows, columns) =
            if vector { (1, output) } else { (output, row.columns.size(config, widths)) };
        let (row_width, column_width) = if vector {
            (None, row.rows.prunable())
        } else {
            (row.rows.prunable(), row.columns.prunable())
        };
        Self {
            name: format!("{hf}{}.{suffix}", Row::name(row.hf, slot)),
            gguf: format!("{gguf}{}.{suffix}", Row::name(row.gguf, slot)),
            slot,
            layer,
            role: if bias { Role::Bias } else { row.role },
            rows,
            columns,
            row_width,
            column_width,
            interleaved: row.interleaved.then_some(config.head_dim),
            optional: bias && row.bias == Bias::Optional,
            offset: match row.role {
                Role::Norm => config.family.norm_offset,
                _ => 0.0,
            },
        }
    }

    /// The name in GGUF of the one f32 by which a tensor of NVFP4 is multiplied.
    pub fn gguf_scale(&self) -> String {
        format!("{}.scale", self.gguf.strip_suffix(".weight").unwrap_or(&self.gguf))
    }

    /// The tensor of a GGUF file that has this one of every expert, one after the other: `blk.0.ffn_up_exps.weight`, as llama.cpp
    /// wants them. `None` if it is no expert's. (The name of one alone is the one that llama.cpp had before.)
    pub fn gguf_stack(&self) -> Option<String> {
        let alone = format!(".{}.weight", self.slot.expert()?);
        self.gguf.strip_suffix(&alone).map(|name| format!("{name}_exps.weight"))
    }

    /// Whether it is of a head that scores labels: its product, what pools a token for it, or a bias of these.
    pub fn is_of_score(&self) -> bool {
        let bias = self.role == Role::Bias && self.layer.is_none();
        self.role == Role::Score || bias && matches!(self.slot, Slot::Head | Slot::Pooler)
    }

    /// The shape in a checkpoint.
    pub fn shape(&self) -> Vec<usize> {
        match self.role {
            Role::Norm | Role::Bias => vec![self.columns],
            _ => vec![self.rows, self.columns],
        }
    }

    /// The block that it is part of, if it is.
    pub fn layer(&self) -> Option<usize> {
        self.layer
    }

    /// Whether it is no weight of a product or an embedding: kept in plain numbers whatever becomes of those.
    pub fn is_plain(&self) -> bool {
        matches!(self.role, Role::Norm | Role::Bias | Role::PositionBias)
    }

    /// Output features: rows of a matrix, values of a bias.
    pub fn features(&self) -> usize {
        if self.role == Role::Bias { self.columns } else { self.rows }
    }

    /// The module's name, without `.weight` or `.bias`.
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or(self.name.as_str(), |(module, _)| module)
    }

    /// Where row `r` of the Hugging Face order stands in GGUF's order, for every `r` of `count` rows.
    ///
    /// Within a head of size d, Hugging Face's row `h * d/2 + i` (half h, pair i) is GGUF's row `2 i + h`.
    pub fn gguf_rows(&self, count: usize) -> Option<Vec<usize>> {
        let dim = self.interleaved?;
        let place = |row: usize| {
            let (head, within) = (row / dim, row % dim);
            let (half, pair) = (within / (dim / 2), within % (dim / 2));
            head * dim + 2 * pair + half
        };
        Some((0..count).map(place).collect())
    }

    /// The inverse of [`TensorSpec::gguf_rows`]: where GGUF's row `r` stands in Hugging Face's order.
    pub fn hf_rows(&self, count: usize) -> Option<Vec<usize>> {
        let forward = self.gguf_rows(count)?;
        let mut inverse = vec![0; count];
        for (row, place) in forward.into_iter().enumerate() {
            inverse[place] = row;
        }
        Some(inverse)
    }
}

/// Every tensor a model of this configuration has or (optional biases) may have, in the order they are met.
pub fn tensor_specs(config: &Config) -> Vec<TensorSpec> {
    let whole = |row: &Row| TensorSpec::new((row, row.slot), None, false, config, config.widest());
    let names = config.family.names;
    let mut specs = vec![whole(&names.embedding)];
    for (layer, widths) in config.blocks.iter().enumerate() {
        let first = config.first_of_stack(layer) == layer;
        for (row, slot) in block_rows(config, layer) {
            if row.stack != Stack::Each && !first {
                continue;
            }
            let spec =
                |row, slot, bias| TensorSpec::new((row, slot), Some(layer), bias, config, *widths);
            specs.push(spec(row, slot, false));
            if matches!(row.role, Role::Linear | Role::Norm) && row.bias != Bias::None {
                specs.push(spec(row, slot, true));
            }
            let shortcut =
                SHORTCUTS.iter().find(|(after, _)| config.shortcuts && *after == row.slot);
            specs.extend(shortcut.map(|(_, row)| spec(row, row.slot, false)));
        }
    }
    specs.extend(names.final_norm.as_ref().map(whole));
    let head = head_row(config).filter(|_| !config.tied);
    // An encoder may come with what a head on it would begin with.
    let pooler = names.pooler.as_ref().filter(|_| config.readout.is_some());
    for row in [pooler, head].into_iter().flatten() {
        let optional = !config.has_head();
        specs.push(TensorSpec { optional, ..whole(row) });
        if row.bias == Bias::Required {
            let bias = TensorSpec::new((row, row.slot), None, true, config, config.widest());
            specs.push(TensorSpec { optional, ..bias });
        }
    }
    specs
}

/// The slots of tensors that all blocks of a layer's stack have from the first of them.
pub fn shared_slots(config: &Config, layer: usize) -> Vec<Slot> {
    let rows = config.family.rows_of(config.part(layer)).iter();
    rows.filter(|row| row.stack != Stack::Each).map(|row| row.slot).collect()
}

/// The rows of a block with their slots: those of experts once for each, expert by expert.
fn block_rows(config: &Config, layer: usize) -> Vec<(&'static Row, Slot)> {
    let rows = config.family.rows_of(config.part(layer));
    let experts = config.experts.map_or(0, |experts| experts.count);
    let mut all = Vec::with_capacity(rows.len());
    for part in rows.chunk_by(|a, b| a.is_of_experts() == b.is_of_experts()) {
        if !part[0].is_of_experts() {
            all.extend(part.iter().map(|row| (row, row.slot)));
            continue;
        }
        let of = |expert| part.iter().map(move |row| (row, row.slot.of_expert(expert)));
        all.extend((0..experts).flat_map(of));
    }
    all
}

/// The module name of a linear layer of a block.
pub fn module_name(config: &Config, layer: usize, slot: Slot) -> String {
    let rows = config.family.rows_of(config.part(layer)).iter();
    let mut rows = rows.chain(SHORTCUTS.iter().map(|(_, row)| row));
    let found = rows.find(|row| row.slot == slot.of_expert(0));
    let name = Row::name(found.map_or("", |row| row.hf), slot);
    match found {
        Some(row) if row.stack == Stack::Outside => name,
        Some(row) if row.stack == Stack::First => {
            format!("{}.{name}", layer_name(config, config.first_of_stack(layer)))
        }
        _ => format!("{}.{name}", layer_name(config, layer)),
    }
}

/// The name of the embedding's table.
pub fn embedding_name(config: &Config) -> String {
    format!("{}.weight", config.family.names.embedding.hf)
}

/// The name of the final norm's weight.
pub fn final_norm_name(config: &Config) -> String {
    let norm = &config.family.names.final_norm;
    norm.map_or_else(String::new, |norm| format!("{}.weight", norm.hf))
}

/// The module name of the head; of a model that has none, empty.
pub fn head_name(config: &Config) -> &'static str {
    head_row(config).map_or("", |row| row.hf)
}

/// The head over the vocabulary, or the one that scores labels; `None`: there is none.
fn head_row(config: &Config) -> Option<&'static Row> {
    let names = config.family.names;
    let row = if config.readout.is_none() { &names.head } else { &names.score };
    Some(row).filter(|_| config.has_head())
}

/// The name that transformers has for a tensor of a model of this configuration.
pub fn stored_name(config: &Config, spec: &TensorSpec) -> String {
    match config.has_head() && spec.slot != Slot::Head {
        true => format!("{}{}", config.family.names.wrapper, spec.name),
        false => spec.name.clone(),
    }
}

impl Family {
    /// The tensors of a block.
    fn rows_of(&self, part: Option<Part>) -> &'static [Row] {
        match part {
            Some(Part::Source) => self.encoder_rows,
            _ => self.rows,
        }
    }
}

/// What savers put in front of all names: compiled or parallel modules, adapters, models with further parts.
const WRAPPERS: &[&str] = &[
    "bert.",
    "_orig_mod.",
    "module.",
    "base_model.model.",
    "model.language_model.",
    "language_model.",
];

/// The name that a checkpoint of a causal model has for what another way of saving calls `name`: without [`WRAPPERS`], and with
/// the `model.` that a checkpoint of the body alone leaves out.
pub fn canonical(name: &str) -> String {
    let mut bare = name;
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| bare.strip_prefix(wrapper)) {
        bare = rest;
    }
    // What TensorFlow called the weight and the bias of a layer norm.
    for (old, new) in [(".LayerNorm.gamma", "weight"), (".LayerNorm.beta", "bias")] {
        if let Some(module) = bare.strip_suffix(old) {
            return format!("{module}.LayerNorm.{new}");
        }
    }
    let body = ["embed_tokens.", "layers.", "norm."].iter().any(|part| bare.starts_with(part));
    if body { format!("model.{bare}") } else { bare.to_string() }
}

/// What it means that a stored tensor is none of a model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Nothing: what is in it follows from the configuration.
    Harmless,
    /// The model that was stored computes something else: a bias or a scale of a known module, an adapter, a further norm.
    Changes,
    /// It may be of a part that this model does without: transformers warns.
    Ignored,
}

/// Tensors that old programs stored beside the weights, by the ends of their names.
const HARMLESS: &[&str] = &[
    // The embedding again, under the names of its users.
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "rotary_emb.inv_freq",
    ".attn_rot_embd",
    ".attn_rot_embd.weight",
    ".masked_bias",
    "rope_freqs.weight",
];

/// Judges a tensor that is none of [`tensor_specs`], by its name in Hugging Face's checkpoints or in GGUF.
pub fn unread(config: &Config, name: &str) -> Unread {
    if HARMLESS.iter().any(|end| name.ends_with(end)) {
        return Unread::Harmless;
    }
    // Any expert is known, also one beyond those that there are.
    let known = |row: &Row, rest: &str| match row.hf.split_once("{}") {
        Some((before, _)) => rest.starts_with(before),
        None => rest.strip_prefix(row.hf).is_some_and(|end| end.starts_with('.')),
    };
    let of = |rows: &[Row], rest: &str| rows.iter().any(|row| known(row, rest));
    let names = config.family.names;
    let stacks = [
        (Some(names.blocks), config.family.rows, config.decoder_layers()),
        (
            names.encoder_blocks,
            config.family.encoder_rows,
            config.layers() - config.decoder_layers(),
        ),
    ];
    let layer = stacks.into_iter().find_map(|(names, rows, layers)| {
        let (number, rest) = name.strip_prefix(names?[0])?.split_once('.')?;
        Some((number, rest, rows, layers))
    });
    let known = match layer {
        Some((number, rest, rows, layers)) => {
            number.parse().is_ok_and(|number: usize| number < layers)
                && (of(rows, rest)
                    || of(&SHORTCUTS.map(|(_, row)| row), rest)
                    || rest.contains("norm"))
        }
        None => {
            let outside = |row: &&Row| row.stack == Stack::Outside;
            let of_stacks = config.family.rows.iter().filter(outside).any(|row| known(row, name));
            let pooler = names.pooler.as_ref().filter(|_| config.has_head());
            let rows =
                [Some(&names.embedding), names.final_norm.as_ref(), head_row(config), pooler];
            of_stacks || rows.into_iter().flatten().any(|row| known(row, name))
        }
    };
    if known { Unread::Changes } else { Unread::Ignored }
}
