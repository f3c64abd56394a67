//! The weight-name table of the Llama family: what each tensor is called, what it is, what shape it has.
//!
//! The names of Hugging Face's checkpoints are Lopper's own; GGUF's are translated at the border.

use super::config::{Config, Widths};
use super::groups::Width;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The token embedding.
    Embedding,
    /// A linear layer of a block.
    Linear,
    /// The output head.
    Head,
    /// The gain of a norm.
    Norm,
    /// A bias of a linear layer; it may be absent.
    Bias,
}

/// A dimension of a tensor, in terms of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Hidden,
    Intermediate,
    Query,
    KeyValue,
    Vocabulary,
}

impl Size {
    /// What channels of this dimension are cut with.
    fn width(self) -> Option<Width> {
        match self {
            Size::Hidden => Some(Width::Hidden),
            Size::Intermediate => Some(Width::FeedForward),
            Size::Query | Size::KeyValue => Some(Width::KvGroup),
            Size::Vocabulary => None,
        }
    }

    /// In a block of these widths; of a tensor outside the blocks, whichever.
    fn of(self, config: &Config, widths: Widths) -> usize {
        match self {
            Size::Hidden => config.hidden_size,
            Size::Intermediate => widths.intermediate_size,
            Size::Query => widths.heads * config.head_dim,
            Size::KeyValue => widths.kv_heads * config.head_dim,
            Size::Vocabulary => config.vocab_size,
        }
    }
}

struct Row {
    hf: &'static str,
    gguf: &'static str,
    role: Role,
    rows: Size,
    columns: Size,
    /// GGUF stores the rows of each head with pairs side by side, Hugging Face with halves apart.
    interleaved: bool,
}

const fn row(
    hf: &'static str,
    gguf: &'static str,
    role: Role,
    rows: Size,
    columns: Size,
    interleaved: bool,
) -> Row {
    Row {
        hf,
        gguf,
        role,
        rows,
        columns,
        interleaved,
    }
}

const EMBEDDING: Row = row(
    "model.embed_tokens",
    "token_embd",
    Role::Embedding,
    Size::Vocabulary,
    Size::Hidden,
    false,
);
const NORM: Row = row(
    "model.norm",
    "output_norm",
    Role::Norm,
    Size::Hidden,
    Size::Hidden,
    false,
);
const HEAD: Row = row(
    "lm_head",
    "output",
    Role::Head,
    Size::Vocabulary,
    Size::Hidden,
    false,
);

/// Tensors of a block, in the order they are met.
const BLOCK: &[Row] = &[
    row(
        "input_layernorm",
        "attn_norm",
        Role::Norm,
        Size::Hidden,
        Size::Hidden,
        false,
    ),
    row(
        "self_attn.q_proj",
        "attn_q",
        Role::Linear,
        Size::Query,
        Size::Hidden,
        true,
    ),
    row(
        "self_attn.k_proj",
        "attn_k",
        Role::Linear,
        Size::KeyValue,
        Size::Hidden,
        true,
    ),
    row(
        "self_attn.v_proj",
        "attn_v",
        Role::Linear,
        Size::KeyValue,
        Size::Hidden,
        false,
    ),
    row(
        "self_attn.o_proj",
        "attn_output",
        Role::Linear,
        Size::Hidden,
        Size::Query,
        false,
    ),
    row(
        "post_attention_layernorm",
        "ffn_norm",
        Role::Norm,
        Size::Hidden,
        Size::Hidden,
        false,
    ),
    row(
        "mlp.gate_proj",
        "ffn_gate",
        Role::Linear,
        Size::Intermediate,
        Size::Hidden,
        false,
    ),
    row(
        "mlp.up_proj",
        "ffn_up",
        Role::Linear,
        Size::Intermediate,
        Size::Hidden,
        false,
    ),
    row(
        "mlp.down_proj",
        "ffn_down",
        Role::Linear,
        Size::Hidden,
        Size::Intermediate,
        false,
    ),
];

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// The name in Hugging Face's checkpoints, `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// The name in GGUF files, `blk.0.ffn_up.weight`.
    pub gguf: String,
    /// What it is for.
    pub role: Role,
    /// Output features; 1 for a vector.
    pub rows: usize,
    /// Input features, or the length of a vector.
    pub columns: usize,
    /// What its rows are channels of, if they can be cut; of a vector nothing.
    pub row_width: Option<Width>,
    /// What its columns, or a vector's values, are channels of.
    pub column_width: Option<Width>,
    /// The head size within which GGUF interleaves rows (or a bias' values), if it does.
    pub interleaved: Option<usize>,
}

impl TensorSpec {
    fn new(
        row: &Row,
        (hf_prefix, gguf_prefix): (&str, &str),
        bias: bool,
        config: &Config,
        widths: Widths,
    ) -> Self {
        let suffix = if bias { "bias" } else { "weight" };
        let (rows, columns) = match (row.role, bias) {
            (Role::Norm, _) => (1, row.rows.of(config, widths)),
            (_, true) => (1, row.rows.of(config, widths)),
            (_, false) => (row.rows.of(config, widths), row.columns.of(config, widths)),
        };
        Self {
            name: format!("{hf_prefix}{}.{suffix}", row.hf),
            gguf: format!("{gguf_prefix}{}.{suffix}", row.gguf),
            role: if bias { Role::Bias } else { row.role },
            rows,
            columns,
            row_width: (rows > 1).then(|| row.rows.width()).flatten(),
            column_width: if rows > 1 { row.columns } else { row.rows }.width(),
            interleaved: row.interleaved.then_some(config.head_dim),
        }
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
        let rest = self.name.strip_prefix("model.layers.")?;
        rest.split_once('.')?.0.parse().ok()
    }

    /// Output features: rows of a matrix, values of a bias.
    pub fn features(&self) -> usize {
        if self.role == Role::Bias {
            self.columns
        } else {
            self.rows
        }
    }

    /// The module's name, without `.weight` or `.bias`.
    pub fn module(&self) -> &str {
        self.name
            .rsplit_once('.')
            .map_or(self.name.as_str(), |(module, _)| module)
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

/// Every tensor a model of this configuration has or (biases) may have, in the order they are met.
pub fn tensor_specs(config: &Config) -> Vec<TensorSpec> {
    let whole = |row: &Row| TensorSpec::new(row, ("", ""), false, config, config.widest());
    let mut specs = vec![whole(&EMBEDDING)];
    for (layer, widths) in config.blocks.iter().enumerate() {
        let (hf, gguf) = (format!("model.layers.{layer}."), format!("blk.{layer}."));
        let spec = |row: &Row, bias| TensorSpec::new(row, (&hf, &gguf), bias, config, *widths);
        for row in BLOCK {
            specs.push(spec(row, false));
            if row.role == Role::Linear {
                specs.push(spec(row, true));
            }
        }
    }
    specs.push(whole(&NORM));
    if !config.tied {
        specs.push(whole(&HEAD));
    }
    specs
}
