//! `lopper bench types`: products by weight type, each by its quickest kernel, beside this device's own f16 product.

use serde_json::{Map, Value, json};

use super::products::{Activations, compile, parse_all, parse_format, parse_shape};
use super::rows::{Rows, device_columns, round};
use crate::cli::Global;
use crate::device::Runner;
use crate::error::Result;
use crate::kernels::matmul::Engine;
use crate::kernels::matmul::product::MatmulShape;
use crate::measure::speed::tune::candidates;

/// The products to time.
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
    #[arg(long, value_name = "ROWSxCOLUMNS", value_delimiter = ',', default_value = "14336x4096")]
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
    rows: &mut Rows<'_>,
) -> Result<()> {
    let output = rows.output;
    let formats = parse_all(&arguments.formats, parse_format)?;
    let shapes = parse_all(&arguments.shape, parse_shape)?;
    let activations = Activations::of(global, runner);
    let product = |weight, shape, tokens| activations.product(weight, shape, tokens, Engine::Auto);
    output.progress("compiling", 0, 1);
    let mut products = Vec::new();
    for shape in &shapes {
        for tokens in &arguments.tokens {
            let formats = formats.iter();
            products.extend(formats.map(|weight| product(*weight, *shape, *tokens)));
        }
    }
    compile(runner, products.iter());
    let mut done = 0;
    // The formats of one shape and number of tokens, the first of which the others are compared with.
    for group in products.chunks(formats.len().max(1)) {
        let mut first: Option<f64> = None;
        for product in group {
            let step = format!("timing {}", product.weight.label());
            output.progress(&step, done, products.len());
            done += 1;
            let timed = candidates(runner, product)?;
            let best = timed.iter().min_by(|a, b| a.1.total_cmp(&b.1));
            let Some((choice, us)) = best else {
                output.note(format!("{}: too large for this device", product.class()));
                continue;
            };
            let first = *first.get_or_insert(*us);
            rows.push(row(runner, product, &choice.label(), *us, first))?;
        }
    }
    Ok(())
}

fn row(
    runner: &Runner,
    product: &MatmulShape,
    kernel: &str,
    us: f64,
    first: f64,
) -> Map<String, Value> {
    let MatmulShape { weight, rows, columns, tokens, .. } = *product;
    let bytes = weight.bytes(rows, columns) as f64;
    let operations = 2.0 * (rows * columns * tokens) as f64;
    let fields = json!({
        "weight": weight.label(),
        "bits_per_weight": round(8.0 * bytes / (rows * columns) as f64),
        "shape": format!("{rows}x{columns}"),
        "tokens": tokens,
        "us": round(us),
        "times_as_fast": round(first / us),
        "gbps": round(bytes / us / 1e3),
        "tflops": round(operations / us / 1e6),
        "kernel": kernel,
    });
    let mut row = device_columns(runner);
    row.extend(fields.as_object().cloned().unwrap_or_default());
    row
}
