//! Cases: inputs to try a kernel on. Tests, `verify` and benches run the same ones.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::host::HostTensor;
use super::kernel::Variant;
use crate::tensor::WHOLE_ROW;

/// One set of inputs, made for a given variant.
pub struct Case {
    /// The text that names it: `rows=3,columns=97`.
    pub label: String,
    /// Whether the variant can run it (a kernel for one column takes no case of eight).
    pub fits: fn(&Variant) -> bool,
    /// Whether it is a shape of real use, for benches; tests and `verify` leave it out.
    pub large: bool,
    /// Makes the inputs, the same ones every time.
    pub make: Box<dyn Fn(&Variant) -> CaseData + Send + Sync>,
}

impl Case {
    /// A case that every variant can run.
    pub fn new(
        label: impl Into<String>,
        make: impl Fn(&Variant) -> CaseData + Send + Sync + 'static,
    ) -> Self {
        Self { label: label.into(), fits: |_| true, large: false, make: Box::new(make) }
    }

    /// The case, for benches only.
    pub fn bench(self) -> Self {
        Self { large: true, ..self }
    }

    /// The case with its first binding poisoned.
    pub fn with(self, poison: Poison) -> Self {
        self.poisoned(0, poison)
    }

    /// The case with one of its bindings poisoned.
    pub fn poisoned(self, binding: usize, poison: Poison) -> Self {
        let make = self.make;
        Self {
            label: format!("{}{}", self.label, poison.label()),
            make: Box::new(move |variant| {
                let mut data = make(variant);
                let numbers = &mut data.tensors[binding];
                let columns = numbers.shape[numbers.shape.len() - 1];
                poison.apply(numbers, columns);
                data
            }),
            ..self
        }
    }

    /// The case, run by some variants only.
    pub fn only(self, fits: fn(&Variant) -> bool) -> Self {
        Self { fits, ..self }
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.label)
    }
}

/// The bindings and parameters of a case.
#[derive(Clone, Debug, Default)]
pub struct CaseData {
    /// Bytes of the parameter struct.
    pub parameters: Vec<u8>,
    /// All bindings in order. Of a written binding only shape and type matter; of one that is read and written, the
    /// contents too.
    pub tensors: Vec<HostTensor>,
}

/// What every struct of parameters can do.
pub trait CaseOf {
    /// The inputs of a case: these parameters and all bindings in order.
    fn case(&self, tensors: Vec<HostTensor>) -> CaseData;
}

impl<P: bytemuck::NoUninit> CaseOf for P {
    fn case(&self, tensors: Vec<HostTensor>) -> CaseData {
        CaseData { parameters: bytemuck::bytes_of(self).to_vec(), tensors }
    }
}

/// What a case puts in the place of a binding's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    /// Zeros throughout.
    Zeros,
    /// Infinity in the middle of the first row.
    Infinity,
    /// The same below zero.
    NegativeInfinity,
    /// NaN at the end of the first row: whoever reads beyond the end of a row meets the next.
    NaN,
}

impl Poison {
    /// Poisons rows of so many numbers.
    pub fn apply(self, numbers: &mut HostTensor, columns: usize) {
        let (dtype, count) = (numbers.dtype, numbers.len());
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut numbers.words);
        match self {
            Poison::Zeros => (0..count).for_each(|index| dtype.set(bytes, index, 0.0)),
            Poison::Infinity => dtype.set(bytes, columns / 2, f64::INFINITY),
            Poison::NegativeInfinity => dtype.set(bytes, columns / 2, f64::NEG_INFINITY),
            Poison::NaN => dtype.set(bytes, columns - 1, f64::NAN),
        }
    }

    /// What it adds to a case's text.
    pub fn label(self) -> &'static str {
        match self {
            Poison::Zeros => ",zeros",
            Poison::Infinity => ",infinity",
            Poison::NegativeInfinity => ",-infinity",
            Poison::NaN => ",nan",
        }
    }
}

/// Seeded numbers for cases.
pub struct Random(ChaCha8Rng);

impl Random {
    /// The same numbers for the same seed, on every machine and in every version.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in [-1, 1), on a grid of 2^-23.
    pub fn value(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `count` values uniform in [-scale, scale).
    pub fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.value() * scale).collect()
    }

    /// From a distribution that is normal to three digits, mean 0 and deviation 1: twelve uniform numbers less 6. Integers until
    /// the last division, so that a seed means the same on every machine.
    pub fn normal(&mut self) -> f32 {
        let sum: i64 = (0..12).map(|_| i64::from(self.0.next_u32() >> 8)).sum();
        // Twelve times half a step: each number is the middle of its step.
        (sum + 6 - 6 * (1 << 24)) as f32 / (1 << 24) as f32
    }

    /// A seed of its own for each name (FNV-1a).
    pub fn seed_of(seed: u64, name: &str) -> u64 {
        name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }

    /// 32 bits.
    pub fn word(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Uniform below `limit`.
    pub fn below(&mut self, limit: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(limit)) >> 32) as u32
    }
}

/// What a random case is made of: a few bytes, so that a test can shrink them and a text can name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(pub [u8; Sizes::COUNT]);

impl Sizes {
    /// Bytes, that is numbers that a case may ask for.
    pub const COUNT: usize = 8;

    /// Random sizes.
    pub fn random(random: &mut Random) -> Self {
        Self(std::array::from_fn(|_| random.below(256) as u8))
    }

    /// The number at a place, between two bounds, both included. It falls with its byte.
    pub fn between(&self, place: usize, low: usize, high: usize) -> usize {
        low + usize::from(self.0[place]) * (high - low + 1) / 256
    }

    /// A group of 16 to 128 columns, or the whole row.
    pub fn group(&self, place: usize) -> u32 {
        [WHOLE_ROW, 16, 32, 64, 128][self.between(place, 0, 4)]
    }

    /// The sizes that a text ends with, `...,sizes=00ff…`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.rsplit_once(",sizes=")?.1;
        let byte =
            |index: usize| u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok();
        let mut sizes = [0; Self::COUNT];
        for (index, size) in sizes.iter_mut().enumerate() {
            *size = byte(index)?;
        }
        (digits.len() == 2 * Self::COUNT).then_some(Self(sizes))
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
