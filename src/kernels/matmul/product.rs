//! Which kernel computes a product: the table of product kernels, an analytic order of their candidates, best first, and the
//! measured winner where the device was tuned.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::cases::Shape;
use super::{
    FEW_TOKENS, Input, Params, bits, bitserial, coop, dot4, lut, lut_i8, lut_tables, lut_tables_i8,
    matvec, merge, ternary, tiled,
};
use crate::device::Runner;
use crate::gpu::Capabilities;
use crate::kernels::copy::{planes, ternary as ternary_codes};
use crate::kernels::matrix::Matrix;
use crate::kernels::prelude::*;
use crate::kernels::quantize::activations::{self, Rounding};
use crate::tensor::{BLOCK, WHOLE_ROW, WeightFormat};

/// How products of quantized weights are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// By whatever is quickest.
    #[default]
    Auto,
    /// Decoded, or as integers, and multiplied.
    Mul,
    /// By lookup, with any number of tokens, wherever the weight's type can be looked up; multiplied elsewhere.
    Lut,
    /// By counting the bits of integer activations of eight, with any number of tokens, where the weight's type has planes.
    BitSerial,
}

/// A product kernel: what it takes, and for which products. A new engine is a file with one of these and a line in
/// [`PRODUCTS`].
#[derive(Debug)]
pub struct ProductKernel {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The engine that it is part of, not [`Engine::Auto`].
    pub engine: Engine,
    /// The form of activations that a variant takes.
    pub input: fn(&Variant) -> InputForm,
    /// The form of a weight's codes that a variant takes.
    pub weight: fn(&Variant) -> WeightForm,
    /// The variants for a product on a device with these capabilities, and the parts that its columns are split in; what is
    /// taken without measurement first. None where the kernel does not compute such products.
    pub candidates: fn(&MatmulShape, Capabilities) -> Vec<(Variant, u32)>,
    /// A case of a shape, for the checks and the measurement of tuning.
    pub case: fn(Shape) -> Case,
    /// Whether many tokens gain by one product with the weights of several layers, as measured (an H100): more tiles at once. Of register
    /// tiles it is not known, and other results' places cost them registers.
    pub many_beside: bool,
}

/// Every product kernel. Where the weight's bytes are the limit, integers come first: they take least work apart from loading.
pub static PRODUCTS: &[&ProductKernel] = &[
    &dot4::PRODUCT,
    &coop::PRODUCT,
    &tiled::PRODUCT,
    &matvec::PRODUCT,
    &ternary::PRODUCT,
    &lut_i8::PRODUCT,
    &lut::PRODUCT,
    &bitserial::PRODUCT,
];

/// A form of activations that product kernels take: [`Input`](super::Input) makes and keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputForm {
    /// As they are, in rows padded to whole vectors of four.
    Plain,
    /// Integers with scales ([`quantize/activations`](crate::kernels::quantize::activations)).
    Integers(Rounding),
    /// Tables of sums of this type ([`lut_tables`]).
    Tables(DType),
    /// Tables of sums in bytes ([`lut_tables_i8`]).
    ByteTables,
    /// Bit planes with scales ([`bits`]).
    Bits,
}

/// A form of a weight's codes that product kernels take. [`Matrix`](crate::kernels::matrix::Matrix) keeps those that a product
/// asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// As they are packed.
    Codes,
    /// Bit planes ([`copy/planes`](crate::kernels::copy::planes)).
    Planes,
    /// Indices of sums of two or three ternary weights ([`copy/ternary`](crate::kernels::copy::ternary)).
    Ternary(usize),
}

impl InputForm {
    /// The kernels that make it of activations of a type, each with a variant and a case of that shape.
    fn steps(self, shape: &MatmulShape) -> Vec<(&'static Kernel, Variant, Case)> {
        let (tokens, columns) = (shape.tokens, shape.columns);
        let integers = |rounding| {
            let variant = activations::variant(shape.activation, rounding);
            (&activations::KERNEL, variant, activations::shaped(tokens, columns))
        };
        match self {
            InputForm::Plain => vec![],
            InputForm::Integers(rounding) => vec![integers(rounding)],
            InputForm::Tables(tables) => vec![(
                &lut_tables::KERNEL,
                lut_tables::variant(shape.activation, tables),
                lut_tables::shaped(tokens, columns),
            )],
            InputForm::ByteTables => vec![
                integers(lut_tables_i8::ROUNDING),
                (&lut_tables_i8::KERNEL, Variant::BASELINE, lut_tables_i8::shaped(tokens, columns)),
            ],
            InputForm::Bits => vec![(
                &bits::KERNEL,
                bits::variant(shape.activation),
                bits::shaped(tokens, columns),
            )],
        }
    }
}

impl WeightForm {
    /// Codes of (rows, columns) in this form.
    pub fn make(
        self,
        device: &Device,
        codes: &Tensor,
        format: WeightFormat,
        shape: (usize, usize),
    ) -> Result<Tensor> {
        match self {
            WeightForm::Codes => Ok(codes.clone()),
            WeightForm::Planes => planes::planes(device, codes, format, shape),
            WeightForm::Ternary(each) => ternary_codes::indices(device, codes, format, shape, each),
        }
    }

    /// Whether the largest form of a weight of (rows, columns) fits one binding: forms are padded, and may not where the codes
    /// do.
    pub(super) fn fits(device: &Device, format: WeightFormat, rows: usize, columns: usize) -> bool {
        let words = match format.ty {
            ty if planes::takes(ty) => planes::words(rows, columns, ty.bits as usize),
            ty if ternary_codes::takes(ty) => ternary_codes::words(rows, columns, 2),
            _ => 0,
        };
        4 * words as u64 <= device.max_tensor_bytes()
    }
}

/// A product, as far as the choice of its kernel goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatmulShape {
    /// Type of the activations.
    pub activation: DType,
    /// Bytes of an activation in integer products, 1 to 3.
    pub bytes: u32,
    /// Type of the result.
    pub output: DType,
    /// How the weight is stored.
    pub weight: WeightFormat,
    /// How it is to be computed.
    pub engine: Engine,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Rows of activations.
    pub tokens: usize,
}

impl Hash for MatmulShape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { bytes, rows, columns, tokens, weight, .. } = self;
        (bytes, rows, columns, tokens, weight.group_size).hash(state);
        weight.ty.name.hash(state);
    }
}

/// A product kernel and a variant of it.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The row of the table.
    pub product: &'static ProductKernel,
    /// A variant of the kernel's, so that it has been checked (a test holds that).
    pub variant: Variant,
    /// Parts that the columns are split in, to have more workgroups; [`merge`](super::merge) adds up their sums.
    pub splits: u32,
}

impl Choice {
    /// The kernel.
    pub fn kernel(&self) -> &'static Kernel {
        self.product.kernel
    }

    /// The text that names it in reports and in the table of winners.
    pub fn label(&self) -> String {
        let label = format!("{} [{}]", self.kernel().name, self.variant.label());
        if self.splits > 1 { format!("{label} splits={}", self.splits) } else { label }
    }

    /// The form of the activations.
    pub fn input(&self) -> InputForm {
        (self.product.input)(&self.variant)
    }

    /// The form of the weight's codes.
    pub fn weight(&self) -> WeightForm {
        (self.product.weight)(&self.variant)
    }

    /// A case of that shape, for the checks and the measurement of tuning.
    pub fn case(&self, shape: &MatmulShape) -> Case {
        (self.product.case)(Shape::of(shape, self.splits))
    }

    /// The kernels beside the product's: the one that makes the activations' form, and the one that merges the parts.
    pub fn steps(&self, shape: &MatmulShape) -> Vec<(&'static Kernel, Variant, Case)> {
        let mut steps = self.input().steps(shape);
        if self.splits > 1 {
            steps.push((
                &merge::KERNEL,
                merge::variant(shape.output),
                merge::shaped(shape.tokens, shape.rows, self.splits as usize),
            ));
        }
        steps
    }

    /// Computes the product of activations and codes in their forms, [activations, their scales or none, codes, scales, bias],
    /// in `result`.
    pub(super) fn run(
        &self,
        device: &Device,
        params: &Params,
        operands: &[&Tensor],
        result: &Tensor,
    ) -> Result<()> {
        let product = |params: &Params, result: &Tensor| {
            device.call(
                self.kernel(),
                self.variant.clone(),
                params,
                &[operands, &[result]].concat(),
            )
        };
        if self.splits == 1 {
            return product(params, result);
        }
        let parts = [self.splits, params.tokens, params.rows].map(|size| size as usize);
        let sums = device.allocate(DType::F32, &parts, "parts of a product")?;
        let part = Params {
            result_start: 0,
            out_stride: params.rows,
            out_offset: 0,
            epilogue: 0,
            ..*params
        };
        product(&part, &sums)?;
        let bias = operands[operands.len() - 1];
        device.call(&merge::KERNEL, merge::variant(result.dtype()), params, &[&sums, bias, result])
    }
}

impl MatmulShape {
    /// That of all tokens of `x` with a weight.
    pub(super) fn of(x: &Input, weight: &Matrix, output: DType, engine: Engine) -> Self {
        Self {
            activation: x.dtype(),
            bytes: x.bytes(),
            output,
            weight: weight.format(),
            engine,
            rows: weight.rows(),
            columns: weight.columns(),
            tokens: x.tokens(),
        }
    }

    /// Products that share a winner: sizes up to the same power of two, tokens up to the same step.
    pub fn class(&self) -> String {
        const STEPS: [usize; 7] = [1, 4, 8, 16, 32, 64, 128];
        let tokens = STEPS.iter().find(|step| self.tokens <= **step).unwrap_or(&512);
        // Winners among all engines are what `auto` asks for; those of one engine are its own.
        let engine = match self.engine {
            Engine::Auto => "",
            Engine::Mul => "engine=mul,",
            Engine::Lut => "engine=lut,",
            Engine::BitSerial => "engine=bitserial,",
        };
        format!(
            "{engine}act={},bytes={},out={},weight={},tokens={tokens},rows={},columns={}",
            self.activation,
            self.bytes,
            self.output,
            self.weight.label(),
            self.rows.next_power_of_two(),
            self.columns.next_power_of_two()
        )
    }

    /// Every way to compute it on a device with these capabilities, the analytic choice first.
    pub fn candidates(&self, capabilities: Capabilities) -> Vec<Choice> {
        let of = |wanted: &dyn Fn(Engine) -> bool| -> Vec<Choice> {
            let rows = PRODUCTS.iter().filter(|row| wanted(row.engine));
            rows.flat_map(|row| {
                let variants = (row.candidates)(self, capabilities);
                variants.into_iter().map(move |(variant, splits)| Choice {
                    product: row,
                    variant,
                    splits,
                })
            })
            .collect()
        };
        let asked = of(&|engine| engine == self.engine);
        if !asked.is_empty() {
            return asked;
        }
        let every = self.engine == Engine::Auto && self.few_tokens();
        of(&|engine| every || engine == Engine::Mul)
    }

    /// Whether reading the weight is what takes the time.
    pub(super) fn few_tokens(&self) -> bool {
        self.tokens <= FEW_TOKENS
    }

    /// Whether the weight can stand as bit planes, in groups of whole blocks.
    pub(super) fn has_planes(&self) -> bool {
        let group = self.weight.group_size as usize;
        let whole_blocks = self.weight.group_size == WHOLE_ROW || group.is_multiple_of(BLOCK);
        planes::takes(self.weight.ty) && whole_blocks
    }

    /// The baseline variant for its result and weight.
    pub(super) fn variant(&self) -> Variant {
        Variant { output: self.output, weight: Some(self.weight.ty), ..Variant::BASELINE }
    }

    /// Its variants with each of some constants, unsplit.
    pub(super) fn shaped(
        &self,
        shapes: impl IntoIterator<Item = &'static [(&'static str, u32)]>,
    ) -> Vec<(Variant, u32)> {
        let variant = |constants| Variant { constants, ..self.variant() };
        shapes.into_iter().map(|constants| (variant(constants), 1)).collect()
    }

    /// The kernel to run: the winner that tuning found for the class, or else the analytic choice.
    pub fn choose(&self, capabilities: Capabilities, winner: Option<&str>) -> Choice {
        let mut candidates = self.candidates(capabilities);
        let place = winner.and_then(|winner| candidates.iter().position(|c| c.label() == winner));
        candidates.swap_remove(place.unwrap_or(0))
    }
}

/// Winners by class of product.
pub type Winners = BTreeMap<String, String>;

/// How products are computed on a device: the engine that was asked for, and what tuning found. A runner keeps it.
#[derive(Debug, Default)]
pub struct ProductChoices {
    engine: Engine,
    winners: RwLock<Winners>,
    /// Choices that were made: a token of a small model takes hundreds of products of a few shapes.
    made: RwLock<HashMap<MatmulShape, Choice>>,
    /// The placeholder bound where a product has no bias.
    unused_bias: OnceLock<Tensor>,
}

impl ProductChoices {
    /// By that engine, without winners.
    pub fn new(engine: Engine) -> Self {
        Self { engine, ..Self::default() }
    }

    /// Those of a runner.
    pub fn of(runner: &Runner) -> Arc<Self> {
        runner.kept()
    }

    /// The engine that was asked for.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The tensor that stands for a bias where there is none, made once.
    pub(super) fn unused_bias(&self, make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        if let Some(made) = self.unused_bias.get() {
            return Ok(made.clone());
        }
        let made = make()?;
        Ok(self.unused_bias.get_or_init(|| made).clone())
    }

    /// The kernel to run.
    pub(super) fn choose(&self, shape: &MatmulShape, capabilities: Capabilities) -> Choice {
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(choice) = made.get(shape) {
            return choice.clone();
        }
        drop(made);
        let winner = self.winner(|| shape.class());
        let choice = shape.choose(capabilities, winner.as_deref());
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        made.insert(*shape, choice.clone());
        choice
    }

    /// Takes over what tuning found best, by class of product.
    pub fn learn(&self, winners: Winners) {
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        made.clear();
        let mut known = self.winners.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(winners);
    }

    /// The winner of tuning for a class of products.
    pub fn winner(&self, class: impl FnOnce() -> String) -> Option<String> {
        let known = self.winners.read().unwrap_or_else(PoisonError::into_inner);
        if known.is_empty() {
            return None;
        }
        known.get(&class()).cloned()
    }
}
