//! Products as `bench types`, `bench lut` and `tune-device` name them by flags, and their times.

use crate::cli::{ComputeChoice, Global};
use crate::device::Runner;
use crate::error::{Error, Result};
use crate::kernels::matmul::Engine;
use crate::kernels::matmul::product::MatmulShape;
use crate::measure::speed::tune::prepare;
use crate::tensor::{DType, WeightFormat};

/// Products with the activations that `--compute` asks for: type, and bytes in integer products.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    dtype: DType,
    bytes: u32,
}

impl Activations {
    /// f16 where the device has it and the user does not ask for f32.
    pub(super) fn of(global: &Global, runner: &Runner) -> Self {
        let half = runner.gpu().capabilities().f16 && global.compute != ComputeChoice::F32;
        Self {
            dtype: if half { DType::F16 } else { DType::F32 },
            bytes: match (global.compute, half) {
                (ComputeChoice::I8, _) => 1,
                (_, true) => 2,
                (_, false) => 3,
            },
        }
    }

    /// The product of a weight, (rows, columns), with some tokens.
    pub(super) fn product(
        self,
        weight: WeightFormat,
        (rows, columns): (usize, usize),
        tokens: u32,
        engine: Engine,
    ) -> MatmulShape {
        MatmulShape {
            activation: self.dtype,
            bytes: self.bytes,
            output: self.dtype,
            engine,
            weight,
            rows,
            columns,
            tokens: tokens as usize,
        }
    }
}

/// Compiles every candidate of some products before the first is timed: a device that waits for compilers slows down.
pub(super) fn compile<'a>(runner: &Runner, products: impl Iterator<Item = &'a MatmulShape>) {
    let capabilities = runner.gpu().capabilities();
    let choices: Vec<_> = products.flat_map(|product| product.candidates(capabilities)).collect();
    prepare(runner, &choices);
}

/// A weight format from its label: `uint4m-g32`.
pub(super) fn parse_format(text: &str) -> Result<WeightFormat> {
    WeightFormat::from_label(text).ok_or_else(|| Error::Argument {
        argument: "--type".into(),
        expected: "a weight type with its group size, such as uint4m-g32, int8-row or f16".into(),
        found: text.into(),
    })
}

/// Rows and columns of a weight: `4096x4096`.
pub(super) fn parse_shape(text: &str) -> Result<(usize, usize)> {
    let numbers = text.split_once('x').and_then(|(rows, columns)| {
        let number = |text: &str| text.parse::<usize>().ok().filter(|n| (1..=1 << 18).contains(n));
        Some((number(rows)?, number(columns)?))
    });
    numbers.ok_or_else(|| Error::Argument {
        argument: "--shape".into(),
        expected: "rows and columns, such as 4096x4096".into(),
        found: text.into(),
    })
}

/// Every text of a list, parsed.
pub(super) fn parse_all<T>(texts: &[String], parse: fn(&str) -> Result<T>) -> Result<Vec<T>> {
    texts.iter().map(|text| parse(text)).collect()
}
