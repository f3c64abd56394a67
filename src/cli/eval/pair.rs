//! A text and the models that are measured on it, one or two.

use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::cli::Global;
use crate::cli::output::Output;
use crate::cli::session::{compute, load_for_windows};
use crate::data::{mark_gaps, read_text};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::kernels::kv::CacheType;
use crate::measure::quality::statistics::Bootstrap;
use crate::measure::quality::summary::{Size, TextComparison, TextFigures};
use crate::measure::{
    Convention, Divergences, Losses, Windows, divergence, losses, perplexity_change,
};
use crate::model::{Checkpoint, Pass, Weights};
use crate::text::Tokenizer;

/// The conventions by their names on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ConventionName {
    Lopper,
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

impl From<ConventionName> for Convention {
    fn from(name: ConventionName) -> Self {
        match name {
            ConventionName::Lopper => Convention::AllButFirst,
            ConventionName::LlamaCpp => Convention::SecondHalf,
        }
    }
}

/// Flags that say how a text is cut into windows and scored.
#[derive(Debug, clap::Args)]
pub(super) struct WindowArguments {
    /// Tokens of a window
    #[arg(long, default_value_t = 512)]
    pub(super) ctx: usize,
    /// Use the text's first tokens only
    #[arg(long)]
    max_tokens: Option<usize>,
    /// Which tokens are scored: all but each window's first, or llama-perplexity's second halves
    #[arg(long, default_value = "lopper")]
    convention: ConventionName,
}

impl WindowArguments {
    /// A text, measured as the flags say.
    pub(super) fn of<'a>(&self, source: &'a str) -> Text<'a> {
        Text {
            source,
            ctx: self.ctx,
            max_tokens: self.max_tokens,
            convention: self.convention.into(),
        }
    }
}

/// A text, and how it is measured.
pub(super) struct Text<'a> {
    pub(super) source: &'a str,
    pub(super) ctx: usize,
    max_tokens: Option<usize>,
    convention: Convention,
}

impl Text<'_> {
    /// The text as a model's tokens.
    pub(super) fn tokenize(&self, tokenizer: &Tokenizer) -> Result<TokenizedText> {
        // llama-perplexity cuts its windows from a text that begins with BOS, where the vocabulary asks for it.
        let special = self.convention == Convention::SecondHalf;
        if special && tokenizer.decoder_start.is_some() {
            return Err(Error::Argument {
                argument: "--convention".into(),
                expected:
                    "lopper for a model with an encoder, which reads each window's first half"
                        .into(),
                found: "llama.cpp".into(),
            });
        }
        let convention = match tokenizer.decoder_start {
            Some(_) => Convention::Prefix,
            None => self.convention,
        };
        // And special tokens that stand in it are text to it.
        let plain = special.then(|| tokenizer.without_specials_in_text());
        let engine = plain.as_ref().unwrap_or(tokenizer);
        let most = self.max_tokens.unwrap_or(usize::MAX);
        let (mut tokens, ends) =
            engine.encode_with_ends(&read_text(self.source)?, special, most)?;
        Windows::check_length(tokens.len(), self.ctx, self.max_tokens)?;
        mark_gaps(&mut tokens, self.ctx, tokenizer.gap());
        Ok(TokenizedText {
            tokens,
            ends,
            convention,
            bos: tokenizer.bos.filter(|_| tokenizer.add_bos && special),
        })
    }
}

/// A text as tokens, the place in its bytes where each token ends, and the BOS that begins a window if the convention has one.
pub(super) struct TokenizedText {
    pub(super) tokens: Vec<u32>,
    pub(super) ends: Vec<usize>,
    convention: Convention,
    bos: Option<u32>,
}

impl TokenizedText {
    pub(super) fn windows(&self, text: &Text<'_>) -> Result<Windows<'_>> {
        Windows::new(&self.tokens, text.ctx, self.convention, self.bos)
    }
}

/// How large a model is.
pub(super) fn size(name: &str, checkpoint: &Checkpoint) -> Size {
    Size {
        model: name.into(),
        parameters: checkpoint.parameters(),
        bytes: checkpoint.total_stored_bytes(),
        file_bytes: checkpoint.file_bytes(),
        bytes_f16: 2 * checkpoint.parameters(),
    }
}

/// A parent and its child, each with the text in its own tokens. Made before a device is opened.
pub(super) struct Pair<'a> {
    checkpoints: [&'a Checkpoint; 2],
    texts: [TokenizedText; 2],
    same_tokens: bool,
    impossible: Option<String>,
}

impl<'a> Pair<'a> {
    /// Tokenizes the text for both and decides which figures they can have.
    pub(super) fn new(
        parent: &'a Checkpoint,
        child: &'a Checkpoint,
        text: &Text<'_>,
        output: &Output,
    ) -> Result<Self> {
        let checkpoints = [parent, child];
        let tokenizers = [parent.tokenizer()?, child.tokenizer()?];
        let mut texts = [text.tokenize(&tokenizers[0])?, text.tokenize(&tokenizers[1])?];
        for (checkpoint, tokens) in checkpoints.iter().zip(&texts) {
            tokens.windows(text)?;
            if let Some(warning) = checkpoint.config().beyond_context(text.ctx) {
                output.note(format!("warning: {warning}"));
            }
        }
        let other = other_tokens(&tokenizers, &texts);
        let sizes = checkpoints.map(|checkpoint| checkpoint.config().vocab_size);
        let same_tokens = other.is_none();
        if !same_tokens {
            same_bytes(&mut texts, text.ctx);
        }
        let impossible = match other {
            Some(why) => Some(format!(
                "no KL divergence, no change of perplexity or of the text's probabilities: the parent has another tokenizer \
                 ({why}); bits per byte and tasks can be compared"
            )),
            None if sizes[0] != sizes[1] => Some(format!(
                "no KL divergence and no change of the text's probabilities: the parent's logits have {} tokens, the child's \
                 {}; perplexity, bits per byte and tasks can be compared",
                sizes[0], sizes[1]
            )),
            None => None,
        };
        Ok(Self { checkpoints, texts, same_tokens, impossible })
    }

    /// Tokens that the two models read together.
    pub(super) fn tokens(&self, text: &Text<'_>) -> usize {
        self.texts.iter().map(|of_model| of_model.tokens.len() / text.ctx * text.ctx).sum()
    }

    /// Runs both models, the child with a key-value cache of that type; the time counts forward passes only.
    pub(super) fn measure(
        &self,
        global: &Global,
        device: &Device,
        text: &Text<'_>,
        cache: Option<&'static CacheType>,
        output: &Output,
    ) -> Result<(TextComparison, Duration)> {
        let compute = compute(global, device)?;
        let computes = [compute, compute.with_cache(cache)];
        let load = |side: usize, models: u64| {
            let (checkpoint, sizes) = (self.checkpoints[side], (text.ctx, models));
            load_for_windows(global, device, checkpoint, computes[side], sizes, output)
        };
        let progress = |done: usize, total: usize| {
            output.progress("evaluating", done, total);
            interrupt::check()
        };
        let windows = [self.texts[0].windows(text)?, self.texts[1].windows(text)?];
        let figures = |side: usize, losses: &Losses| TextFigures {
            perplexity: losses.perplexity(),
            bits_per_byte: losses.bits_per_byte(windows[side].scored_bytes(&self.texts[side].ends)),
        };
        let bootstrap = Bootstrap::seeded(global.seed.unwrap_or(0));
        if self.impossible.is_none() {
            let (parent, child) = (load(0, 2)?, load(1, 2)?);
            let start = Instant::now();
            let sources = (parent.source(), child.source());
            let pass = Pass { device, compute: computes[1] };
            let found: Divergences =
                divergence(sources.0, sources.1, &pass, &windows[0], progress)?;
            let comparison = TextComparison {
                parent: figures(0, &found.parent),
                child: figures(1, &found.child),
                change: Some(perplexity_change(&found.parent, &found.child, bootstrap)),
                kl: Some(found.kl()),
                delta_p: Some(found.delta_p()),
                impossible: None,
            };
            return Ok((comparison, start.elapsed()));
        }
        let (mut found, mut time) = (Vec::new(), Duration::ZERO);
        for (side, windows) in windows.iter().enumerate() {
            let model = load(side, 1)?;
            let start = Instant::now();
            let progress = |_: &Losses, done: usize, total: usize| progress(done, total);
            let pass = Pass { device, compute: computes[side] };
            found.push(losses(model.source(), &pass, windows, progress)?);
            time += start.elapsed();
        }
        let comparison = TextComparison {
            parent: figures(0, &found[0]),
            child: figures(1, &found[1]),
            change: self.same_tokens.then(|| perplexity_change(&found[0], &found[1], bootstrap)),
            kl: None,
            delta_p: None,
            impossible: self.impossible.clone(),
        };
        Ok((comparison, time))
    }
}

/// Truncates both texts to the bytes that both models read, to within a window.
fn same_bytes(texts: &mut [TokenizedText; 2], ctx: usize) {
    let end = |text: &TokenizedText| text.ends[text.tokens.len() / ctx * ctx - 1];
    let common = end(&texts[0]).min(end(&texts[1]));
    for text in texts {
        let fits = text.ends.partition_point(|end| *end <= common);
        text.tokens.truncate(fits.max(ctx));
    }
}

/// Why two models read different tokens; `None` if they read the same.
fn other_tokens(tokenizers: &[Tokenizer; 2], texts: &[TokenizedText; 2]) -> Option<String> {
    if let Some(id) = tokenizers[0].first_difference(&tokenizers[1]) {
        let spelled = |tokenizer: &Tokenizer| {
            tokenizer.token(id).map_or("missing".into(), |token| format!("{token:?}"))
        };
        let [parent, child] = tokenizers;
        return Some(format!(
            "token {id} is {} there, {} in the child",
            spelled(parent),
            spelled(child)
        ));
    }
    let same = texts[0].tokens == texts[1].tokens && texts[0].bos == texts[1].bos;
    (!same).then(|| "the same tokens, but it cuts the text otherwise".into())
}
