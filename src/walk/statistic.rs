//! Statistics of what goes through a block: sums over tokens, so that those of two parts of a text add up to those of the whole.
//! They are summed on the device ([`Statistics`]) and kept on the host ([`BlockSums`]).

use std::collections::BTreeMap;

use super::Observer;
use crate::device::{Device, HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::graph::Slot;
use crate::kernels::copy::scale_rows::scale_rows;
use crate::kernels::matmul::gram;
use crate::kernels::score::sums::{self, Term};
use crate::kernels::score::{Form, maxima, rows};
use crate::tensor::DType;

/// What is summed over the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Of each input channel of a linear layer the squares (Wanda's norms are their roots): (input features).
    Squares,
    /// Of each input channel the values: over the tokens their means: (input features).
    Values,
    /// Of each input channel the magnitudes (AWQ): (input features).
    Magnitudes,
    /// Of each input channel the largest magnitude (SmoothQuant), which is no sum: of two parts the larger is that of both:
    /// (input features).
    Maxima,
    /// Of each input channel the squared mean magnitude over each sequence (Minitron, whose score is its root):
    /// (input features).
    SequenceMagnitudes,
    /// X^T X of a linear layer's inputs, half the Hessian of its squared error (GPTQ, SparseGPT, SliceGPT):
    /// (input features, input features).
    Gram,
    /// The cosine of each token's residual stream before and after the block (depth pruning).
    Cosine,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 7] = [
        Kind::Squares,
        Kind::Values,
        Kind::Magnitudes,
        Kind::Maxima,
        Kind::SequenceMagnitudes,
        Kind::Gram,
        Kind::Cosine,
    ];

    /// The name in files and flags.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Squares => "squares",
            Kind::Values => "values",
            Kind::Magnitudes => "magnitudes",
            Kind::Maxima => "maxima",
            Kind::SequenceMagnitudes => "sequence_magnitudes",
            Kind::Gram => "gram",
            Kind::Cosine => "cosine",
        }
    }

    /// The kind of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether there is such a sum over an expert's inputs: these are no whole sequences.
    fn is_of_experts(self) -> bool {
        !matches!(self, Kind::SequenceMagnitudes | Kind::Cosine)
    }

    /// What two parts of a text have together.
    pub fn joined(self, a: f32, b: f32) -> f32 {
        match self {
            Kind::Maxima => a.max(b),
            _ => a + b,
        }
    }

    /// The shape of a sum over inputs of so many features; of the cosine, which is of a block, a number.
    pub fn shape(self, features: usize) -> Vec<usize> {
        match self {
            Kind::Gram => vec![features, features],
            Kind::Cosine => vec![],
            _ => vec![features],
        }
    }
}

/// Sums over the tokens of a text of what goes through one block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockSums {
    /// Of the inputs of linear layers, by the slot that stands for all with the same input ([`Slot::input`]).
    pub inputs: BTreeMap<Slot, InputSums>,
    /// The cosines of the residual stream before and after the block.
    pub cosines: f64,
    /// How many cosines these are.
    pub tokens: u64,
}

/// Sums over the tokens of a text of one input of linear layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputSums {
    /// The tokens.
    pub tokens: u64,
    /// The sequences that they are of.
    pub sequences: u64,
    /// Each kind's, row by row.
    pub sums: BTreeMap<Kind, Vec<f32>>,
}

impl BlockSums {
    /// What is known of a linear layer's input.
    pub fn input(&self, slot: Slot) -> Option<&InputSums> {
        self.inputs.get(&slot.input())
    }

    /// A sum over a linear layer's inputs.
    pub fn sum(&self, slot: Slot, kind: Kind) -> Option<&[f32]> {
        self.input(slot)?.sums.get(&kind).map(Vec::as_slice)
    }

    /// The mean cosine of the residual stream before and after the block.
    pub fn mean_cosine(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.cosines / self.tokens as f64)
    }

    /// Adds the statistics of another part of the text, of the same block and kinds.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        let (own, its) = (self.kinds(), other.kinds());
        if own != its {
            return Err(Error::Argument {
                argument: "statistics to add".into(),
                expected: format!("sums of {}", listed(&own)),
                found: format!("sums of {}", listed(&its)),
            });
        }
        for (slot, own) in &mut self.inputs {
            let its = &other.inputs[slot];
            own.tokens += its.tokens;
            own.sequences += its.sequences;
            for (kind, own) in &mut own.sums {
                for (own, its) in own.iter_mut().zip(&its.sums[kind]) {
                    *own = kind.joined(*own, *its);
                }
            }
        }
        self.cosines += other.cosines;
        self.tokens += other.tokens;
        Ok(())
    }

    /// Gives an input that no token reached, as happens to experts', sums of these kinds over its features: zeros.
    pub fn fill_unreached(&mut self, slot: Slot, features: usize, kinds: &[Kind]) {
        let unreached = slot.expert().is_some() && !self.inputs.contains_key(&slot.input());
        if !unreached {
            return;
        }
        let kinds = kinds.iter().filter(|kind| kind.is_of_experts());
        let zeros = |kind: &Kind| (*kind, vec![0.0; kind.shape(features).iter().product()]);
        let sums = kinds.map(zeros).collect();
        self.inputs.insert(slot.input(), InputSums { sums, ..InputSums::default() });
    }

    /// What sums these are, input, kind and length; and whether there are cosines.
    fn kinds(&self) -> (Vec<(Slot, Kind, usize)>, bool) {
        let sums = self.inputs.iter().flat_map(|(slot, input)| {
            input.sums.iter().map(|(kind, sum)| (*slot, *kind, sum.len()))
        });
        (sums.collect(), self.tokens > 0)
    }
}

fn listed((sums, cosines): &(Vec<(Slot, Kind, usize)>, bool)) -> String {
    let sums = sums.iter().map(|(slot, kind, count)| format!("{slot:?} {} ({count})", kind.name()));
    let mut all: Vec<String> = sums.collect();
    if *cosines {
        all.push(Kind::Cosine.name().into());
    }
    if all.is_empty() { "nothing".into() } else { all.join(", ") }
}

/// Statistics of one block while they are summed on a device.
#[derive(Debug)]
pub struct Statistics<'a> {
    device: &'a Device,
    kinds: &'a [Kind],
    /// Tokens of a sequence.
    length: usize,
    /// What a token counts in squares and Gram matrices of an input, by the root, where it is not 1: in the order of the tokens.
    roots: BTreeMap<Slot, &'a [f32]>,
    sums: BTreeMap<(Slot, Kind), Tensor>,
    tokens: BTreeMap<Slot, u64>,
    cosines: f64,
    seen: u64,
}

impl<'a> Statistics<'a> {
    /// None yet, of these kinds, over sequences of `length` tokens.
    pub fn new(device: &'a Device, kinds: &'a [Kind], length: usize) -> Self {
        Self {
            device,
            kinds,
            length,
            roots: BTreeMap::new(),
            sums: BTreeMap::new(),
            tokens: BTreeMap::new(),
            cosines: 0.0,
            seen: 0,
        }
    }

    /// With tokens that count differently in squares and Gram matrices: of each of these inputs the roots of what each token, in the
    /// order in which they are shown, counts.
    pub fn with_roots(self, roots: BTreeMap<Slot, &'a [f32]>) -> Self {
        Self { roots, ..self }
    }

    /// What squares and Gram matrices are summed of: `x` (tokens, width), tokens from `first` on.
    fn counted(&self, slot: Slot, x: &Tensor, first: usize) -> Result<Tensor> {
        let tokens = x.shape()[0];
        let Some(roots) = self.roots.get(&slot) else { return Ok(x.clone()) };
        let roots = HostTensor::from_f32(DType::F32, &[tokens], &roots[first..first + tokens]);
        scale_rows(self.device, x, &self.device.upload(&roots, "what tokens count")?)
    }

    /// The sums so far, read back. An error if any is not finite, with what `name` calls the linear layer.
    pub fn read(&self, name: impl Fn(Slot) -> String) -> Result<BlockSums> {
        let mut block =
            BlockSums { cosines: self.cosines, tokens: self.seen, ..BlockSums::default() };
        for (slot, tokens) in &self.tokens {
            let sequences = tokens / self.length as u64;
            let input = InputSums { tokens: *tokens, sequences, sums: BTreeMap::new() };
            block.inputs.insert(*slot, input);
        }
        for ((slot, kind), sum) in &self.sums {
            let values = match kind {
                Kind::Gram => gram::read(self.device, sum)?,
                _ => self.device.read(sum)?,
            };
            let values = values.to_f32();
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::NotFinite {
                    what: format!("{} of the input of {}", kind.name(), name(*slot)),
                    found: value.to_string(),
                });
            }
            let input = block.inputs.get_mut(slot).expect("its tokens were counted");
            input.sums.insert(*kind, values);
        }
        if !block.cosines.is_finite() {
            return Err(Error::NotFinite {
                what: "cosine of a block's input and output".into(),
                found: block.cosines.to_string(),
            });
        }
        Ok(block)
    }
}

impl Observer for Statistics<'_> {
    fn input(&mut self, slot: Slot, x: &Tensor) -> Result<()> {
        // What is known of the router's input is known of its experts', token by token.
        if slot != slot.input() || slot == Slot::Router {
            return Ok(());
        }
        let of_expert = slot.expert().is_some();
        let device = self.device;
        let (tokens, width) = (x.shape()[0], x.len() / x.shape()[0]);
        let first = self.tokens.get(&slot).copied().unwrap_or(0) as usize;
        let counted = self.counted(slot, x, first)?;
        *self.tokens.entry(slot).or_default() += tokens as u64;
        let kinds = self.kinds.iter().filter(|kind| **kind != Kind::Cosine);
        for kind in kinds.filter(|kind| !of_expert || kind.is_of_experts()) {
            let known = self.sums.get(&(slot, *kind)).cloned();
            let later = known.is_some();
            let sum = match known {
                Some(sum) => sum,
                None => device.allocate(DType::F32, &kind.shape(width), "statistics")?,
            };
            match kind {
                Kind::Squares => sums::sums(device, Term::Square, &counted, &sum, later)?,
                Kind::Values => sums::sums(device, Term::Value, x, &sum, later)?,
                Kind::Magnitudes => sums::sums(device, Term::Magnitude, x, &sum, later)?,
                Kind::Maxima => maxima::maxima(device, x, &sum, later)?,
                Kind::SequenceMagnitudes => {
                    sums::sequence_magnitudes(device, x, self.length, &sum, later)?;
                }
                Kind::Gram => {
                    gram::gram(device, &counted.reshaped(&[tokens, width]), &sum, later)?;
                }
                Kind::Cosine => {}
            }
            self.sums.insert((slot, *kind), sum);
        }
        Ok(())
    }

    fn wants_output(&self) -> bool {
        self.kinds.contains(&Kind::Cosine)
    }

    fn output(&mut self, before: &Tensor, after: &Tensor) -> Result<()> {
        self.cosines += cosines(self.device, before, after)?;
        self.seen += before.shape()[0] as u64;
        Ok(())
    }
}

/// The sum of the cosines of each row of `a` with the same row of `b`, f32 (rows, columns) both.
pub fn cosines(device: &Device, a: &Tensor, b: &Tensor) -> Result<f64> {
    let count = a.shape()[0];
    let of_rows = |form: Form, x: &Tensor, y: Option<&Tensor>| {
        let result = device.allocate(DType::F32, &[count], "cosines")?;
        rows::rows(device, form, x, y, None, &result, false)?;
        device.read_later(&result)
    };
    // All three are on their way before the first is waited for.
    let dots = of_rows(Form::Product, a, Some(b))?;
    let (a, b) = (of_rows(Form::L2, a, None)?, of_rows(Form::L2, b, None)?);
    let values = |reading| Ok(device.finish(reading)?.to_f32());
    let (dots, a, b) = (values(dots)?, values(a)?, values(b)?);
    let mut sum = 0.0;
    for ((dot, a), b) in dots.into_iter().zip(a).zip(b) {
        let norms = (f64::from(a) * f64::from(b)).sqrt();
        sum += f64::from(dot) / norms.max(f64::MIN_POSITIVE);
    }
    Ok(sum)
}
