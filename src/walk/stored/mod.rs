//! Statistics that were taken before and kept: a folder that Lopper wrote ([`folder`]), or an imatrix, llama.cpp's or Lopper's
//! ([`imatrix`]). They are the whole model's own: no block of it was compressed when they were taken. A method reads them block
//! by block instead of a text, and refuses those of another model.
//!
//! A block's second moments are large (those of Llama 3 8B 1 GB, [`Kind::Gram`]), so no more than the asked kinds of one block
//! are ever in memory.

mod folder;
mod imatrix;
mod merge;

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use super::{BlockSums, InputSums, Kind};
use crate::disk;
use crate::error::{Error, Result};
use crate::families::{Config, Role, TensorSpec, head_name, module_name, tensor_specs};
use crate::formats::imatrix::Imatrix;
use crate::graph::Slot;

pub use folder::{
    About, FILE, Part, block_file, head_file, read_about, write_about, write_block, write_head,
};
pub use imatrix::write_imatrix;
pub use merge::{Merged, merge};

/// Statistics that were kept.
#[derive(Debug)]
pub struct Stored {
    path: PathBuf,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Folder(About),
    Imatrix(Imatrix),
}

impl Stored {
    /// Opens a folder of statistics or an imatrix file. Sums are read later.
    pub fn open(path: &Path) -> Result<Self> {
        let form = match disk::Kind::of(path).map_err(Error::read(path))? {
            disk::Kind::Folder => Form::Folder(read_about(path)?),
            _ => Form::Imatrix(Imatrix::open(path)?),
        };
        Ok(Self { path: path.into(), form })
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that says which statistics they are: what a run that takes them depends on.
    pub fn file(&self) -> PathBuf {
        match &self.form {
            Form::Folder(_) => self.path.join(FILE),
            Form::Imatrix(_) => self.path.clone(),
        }
    }

    /// What is said of them beside the sums; `None`: nothing, they are an imatrix.
    pub fn about(&self) -> Option<&About> {
        match &self.form {
            Form::Folder(about) => Some(about),
            Form::Imatrix(_) => None,
        }
    }

    /// The imatrix that they are, if they are one.
    pub fn imatrix(&self) -> Option<&Imatrix> {
        match &self.form {
            Form::Folder(_) => None,
            Form::Imatrix(imatrix) => Some(imatrix),
        }
    }

    /// The kinds of sums that there are.
    pub fn kinds(&self) -> Vec<Kind> {
        match &self.form {
            Form::Folder(about) => about.kinds(),
            Form::Imatrix(_) => vec![Kind::Squares],
        }
    }

    /// The tokens that they are of; of an imatrix of llama.cpp's first format, which does not say, its chunks.
    pub fn tokens(&self) -> u64 {
        match &self.form {
            Form::Folder(about) => about.tokens,
            Form::Imatrix(imatrix) => imatrix.tokens(),
        }
    }

    /// An error unless they are of the model with this hash ([`crate::model::identity`]), which `model` names. An imatrix of
    /// llama.cpp has no hash: [`Stored::require`] tells whether it can be of the model.
    pub fn check_model(&self, model: &Path, identity: &str) -> Result<()> {
        let (hash, name) = match &self.form {
            Form::Folder(about) => (Some(about.model_sha256.as_str()), about.model.as_str()),
            Form::Imatrix(imatrix) => (imatrix.model_sha256.as_deref(), "another model"),
        };
        match hash {
            Some(hash) if hash != identity => Err(Error::Misplaced {
                path: self.path.clone(),
                found: format!(
                    "these statistics are of {name}, sha256 {hash}, and {} has sha256 {identity}",
                    model.display()
                ),
                advice: format!("`lopper calibrate {} --out STATS` makes its own", model.display()),
            }),
            _ => Ok(()),
        }
    }

    /// An error unless there are sums of these kinds of every input of this configuration. Reads headers only.
    pub fn require(&self, config: &Config, kinds: &[Kind]) -> Result<()> {
        let there = self.kinds();
        let found = || there.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
        let lacks = |kind: Kind| !there.contains(&kind) && !follows(kind, &there);
        if let Some(kind) = kinds.iter().copied().find(|kind| lacks(*kind)) {
            let first = inputs(config, 0).next();
            let tensor = first.map_or_else(String::new, |spec| named(spec.module(), kind));
            return Err(Error::Tensor {
                path: self.path.clone(),
                tensor,
                expected: format!(
                    "statistics of kind {0} (`lopper calibrate MODEL --kinds {0} --out STATS` makes them)",
                    kind.name()
                ),
                found: found(),
            });
        }
        match &self.form {
            Form::Folder(about) => folder::check(&self.path, about, config),
            Form::Imatrix(imatrix) => imatrix::check(imatrix, config),
        }
    }

    /// The sums of these kinds over what goes through a block.
    pub fn block(&self, config: &Config, layer: usize, kinds: &[Kind]) -> Result<BlockSums> {
        let there = self.kinds();
        let read: Vec<Kind> = kinds
            .iter()
            .map(|kind| if there.contains(kind) { *kind } else { Kind::Gram })
            .filter(|kind| there.contains(kind))
            .collect();
        let mut sums = match &self.form {
            Form::Folder(_) => folder::read_block(&self.path, config, layer, &read)?,
            Form::Imatrix(imatrix) => imatrix::block(imatrix, config, layer)?,
        };
        for input in sums.inputs.values_mut() {
            derive(input, kinds);
        }
        Ok(sums)
    }

    /// The sums of these kinds over the head's input; `None` where it was not observed.
    pub fn head(&self, config: &Config, kinds: &[Kind]) -> Result<Option<InputSums>> {
        let head = match &self.form {
            Form::Folder(_) => folder::read_head(&self.path, config, &self.kinds())?,
            Form::Imatrix(imatrix) => imatrix::head(imatrix, config)?,
        };
        Ok(head.map(|mut input| {
            derive(&mut input, kinds);
            input
        }))
    }

    /// What the user should know of them, where these kinds are taken.
    pub fn cautions(&self, config: &Config, kinds: &[Kind]) -> Vec<String> {
        let caution = match kinds.contains(&Kind::Gram) {
            true => few_tokens(config, self.tokens()),
            false => None,
        };
        caution.map(|text| format!("{}: {text}", self.path.display())).into_iter().collect()
    }
}

/// Whether a kind can be had from others: the squares are the diagonal of the second moments.
fn follows(kind: Kind, there: &[Kind]) -> bool {
    kind == Kind::Squares && there.contains(&Kind::Gram)
}

/// Adds what follows from other kinds and takes away what was not asked for.
fn derive(input: &mut InputSums, kinds: &[Kind]) {
    if kinds.contains(&Kind::Squares)
        && !input.sums.contains_key(&Kind::Squares)
        && let Some(gram) = input.sums.get(&Kind::Gram)
    {
        let width = gram.len().isqrt();
        let diagonal = gram.iter().step_by(width + 1).copied().collect();
        input.sums.insert(Kind::Squares, diagonal);
    }
    input.sums.retain(|kind, _| kinds.contains(kind));
}

/// What is wrong with second moments over so many tokens, if anything: with fewer tokens than channels they are singular.
pub fn few_tokens(config: &Config, tokens: u64) -> Option<String> {
    let layers = (0..config.layers()).flat_map(|layer| inputs(config, layer));
    let few = layers.filter(|spec| spec.columns as u64 > tokens);
    let widest = few.max_by_key(|spec| (spec.columns, Reverse(spec.layer)))?;
    Some(format!(
        "{tokens} tokens are fewer than the {} channels of the input of {}: second moments of so few have a rank of at most {tokens}; \
         take more --samples or a greater --length",
        widest.columns,
        widest.module(),
    ))
}

/// The linear layers that stand for the inputs of a block, one for each.
fn inputs(config: &Config, layer: usize) -> impl Iterator<Item = TensorSpec> {
    let specs = tensor_specs(config).into_iter();
    specs.filter(move |spec| {
        spec.layer == Some(layer) && spec.role == Role::Linear && spec.slot == spec.slot.input()
    })
}

/// The input features of each input of a block's linear layers.
pub fn input_widths(config: &Config, layer: usize) -> Vec<usize> {
    inputs(config, layer).map(|spec| spec.columns).collect()
}

/// The module's name of a linear layer of a block, or of the head.
pub fn module_of(config: &Config, layer: usize, slot: Slot) -> String {
    match slot {
        Slot::Head => head_name(config).into(),
        slot => module_name(config, layer, slot),
    }
}

/// The linear layer that stands for the head's input: its module and input features. There is one too where the head is the
/// embedding.
fn head_input(config: &Config) -> (&'static str, Slot, usize) {
    (head_name(config), Slot::Head, config.hidden_size)
}

/// The name of a sum.
fn named(module: &str, kind: Kind) -> String {
    format!("{module}.{}", kind.name())
}
