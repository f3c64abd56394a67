//! `lopper bench types`: products by weight type, each by its quickest kernel, beside this device's own f16 product.

use serde_json::{Map, Value, json};

use super::output::Output;
use super::{ComputeChoice, Global, bench, tune};
use crate::device::Runner;
use crate::error::Result;
use crate::kernels::matmul::Engine;
use crate::kernels::matmul::product::MatmulShape;
use crate::measure::tune::{candidates, prepare};
use crate::tensor::{DType, WeightFormat};

/// What to time.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Weight formats with their group sizes; the first is what the others are compared with
    #[arg(
        long = "type",
        value_name = "FORMAT",
        value_delimiter = ',',
        default_value = "f16,int8-g32,uint4m-g32,int3-g64,int2-g64,ternary-g64,int1-g64,nf4-g64,fp4-g32,fp8_e4m3-g32,fp8_e5m2-g32,mxfp4-g32,nvfp4-g16"
    )]
    formats: Vec<String>,
    /// Output x input features of the products
    #[arg(
        long,
        value_name = "ROWSxCOLUMNS",
        value_delimiter = ',',
        default_value = "14336x4096"
    )]
    shape: Vec<String>,
    /// Tokens at once
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,512", value_parser = clap::value_parser!(u32).range(1..=65536))]
    tokens: Vec<u32>,
}

/// A row for each shape, number of tokens and type.
pub(super) fn rows(
    global: &Global,
    runner: &Runner,
    arguments: &Arguments,
    output: &Output,
) -> Result<Vec<Map<String, Value>>> {
    let formats = tune::parse_all(&arguments.formats, tune::parse_format)?;
    let shapes = tune::parse_all(&arguments.shape, tune::parse_shape)?;
    let half = runner.gpu().capabilities().f16 && global.compute != ComputeChoice::F32;
    let activation = if half { DType::F16 } else { DType::F32 };
    let bytes = match (global.compute, half) {
        (ComputeChoice::I8, _) => 1,
        (_, true) => 2,
        (_, false) => 3,
    };
    let product =
        |weight: WeightFormat, (rows, columns): (usize, usize), tokens: u32| MatmulShape {
            activation,
            bytes,
            output: activation,
            engine: Engine::Auto,
            weight,
            rows,
            columns,
            tokens: tokens as usize,
        };
    // All at once before the first is timed: a device that waits for compilers slows down.
    output.progress("compiling", 0, 1);
    let every = shapes.iter().flat_map(|shape| {
        let tokens = arguments.tokens.iter();
        let each = tokens.flat_map(|tokens| {
            let formats = formats.iter();
            formats.map(|weight| product(*weight, *shape, *tokens))
        });
        each.collect::<Vec<_>>()
    });
    let capabilities = runner.gpu().capabilities();
    let choices: Vec<_> = every
        .flat_map(|product| product.candidates(capabilities))
        .collect();
    prepare(runner, &choices);
    let total = formats.len() * shapes.len() * arguments.tokens.len();
    let mut rows = Vec::new();
    for shape in shapes.iter().copied() {
        for tokens in &arguments.tokens {
            let mut beside: Option<f64> = None;
            for weight in &formats {
                output.progress(&format!("timing {}", weight.label()), rows.len(), total);
                let product = product(*weight, shape, *tokens);
                let timed = candidates(runner, &product)?;
                let best = timed.iter().min_by(|a, b| a.1.total_cmp(&b.1));
                let Some((choice, us)) = best else {
                    output.note(format!("{}: too large for this device", product.class()));
                    continue;
                };
                let first = *beside.get_or_insert(*us);
                rows.push(row(&product, &choice.label(), *us, first));
            }
        }
    }
    Ok(rows)
}

fn row(product: &MatmulShape, kernel: &str, us: f64, first: f64) -> Map<String, Value> {
    let MatmulShape {
        weight,
        rows,
        columns,
        tokens,
        ..
    } = *product;
    let bytes = weight.bytes(rows, columns) as f64;
    let operations = 2.0 * (rows * columns * tokens) as f64;
    let fields = json!({
        "weight": weight.label(),
        "bits_per_weight": bench::round(8.0 * bytes / (rows * columns) as f64),
        "shape": format!("{rows}x{columns}"),
        "tokens": tokens,
        "us": bench::round(us),
        "times_as_fast": bench::round(first / us),
        "gbps": bench::round(bytes / us / 1e3),
        "tflops": bench::round(operations / us / 1e6),
        "kernel": kernel,
    });
    fields.as_object().cloned().unwrap_or_default()
}
