//! `lopper bench lut`: products of weights of 1 to 4 bits by lookup, by counting bits and by multiplying, and of ternary ones
//! by lookup and by multiplying, beside this device's own f16 product.

use serde_json::{Map, Value, json};

use super::products::{Activations, compile, parse_all, parse_format, parse_shape};
use super::rows::{Rows, device_columns, round};
use crate::cli::Global;
use crate::device::Runner;
use crate::error::Result;
use crate::kernels::matmul::Engine;
use crate::kernels::matmul::product::MatmulShape;
use crate::measure::speed::tune::candidates;
use crate::tensor::WeightFormat;

/// The products to time.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Bits of the weights
    #[arg(long, value_delimiter = ',', default_value = "1,2,3,4", value_parser = clap::value_parser!(u32).range(1..=4))]
    bits: Vec<u32>,
    /// Columns that share a scale: a power of two from 32; of ternary weights 128 or more
    #[arg(long, default_value_t = 64)]
    group_size: u32,
    /// Output x input features of the products; the default is what T-MAC publishes
    #[arg(
        long,
        value_name = "ROWSxCOLUMNS",
        value_delimiter = ',',
        default_value = "4096x4096,11008x4096,4096x11008,3200x8640"
    )]
    shape: Vec<String>,
    /// Tokens at once
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,64", value_parser = clap::value_parser!(u32).range(1..=4096))]
    tokens: Vec<u32>,
}

/// The names of the engines in the rows, and in the plot.
pub(super) const ENGINES: [&str; 4] = ["f16", "mul", "lut", "bitserial"];

/// A row for each shape, number of tokens, width and engine.
pub(super) fn rows(
    global: &Global,
    runner: &Runner,
    arguments: &Arguments,
    rows: &mut Rows<'_>,
) -> Result<()> {
    let output = rows.output;
    let shapes = parse_all(&arguments.shape, parse_shape)?;
    if arguments.group_size < 32 || !arguments.group_size.is_power_of_two() {
        return Err(crate::error::Error::Argument {
            argument: "--group-size".into(),
            expected: "a power of two, 32 or more".into(),
            found: arguments.group_size.to_string(),
        });
    }
    let mut weights: Vec<(&str, WeightFormat, Engine)> =
        vec![(ENGINES[0], WeightFormat::f16(), Engine::Mul)];
    for bits in &arguments.bits {
        let label = format!("int{bits}-g{}", arguments.group_size);
        let format = parse_format(&label)?;
        weights.push((ENGINES[1], format, Engine::Mul));
        weights.push((ENGINES[2], format, Engine::Lut));
        weights.push((ENGINES[3], format, Engine::BitSerial));
    }
    let ternary = parse_format(&format!("ternary-g{}", arguments.group_size.max(128)))?;
    weights.push((ENGINES[1], ternary, Engine::Mul));
    weights.push((ENGINES[2], ternary, Engine::Lut));
    let activations = Activations::of(global, runner);
    let mut products = Vec::new();
    for shape in &shapes {
        for tokens in &arguments.tokens {
            let product = |weight, engine| activations.product(weight, *shape, *tokens, engine);
            let each = weights.iter();
            let each = each.map(|(name, weight, engine)| (*name, product(*weight, *engine)));
            products.push(each.collect::<Vec<_>>());
        }
    }
    output.progress("compiling", 0, 1);
    let every = products.iter().flatten();
    compile(runner, every.map(|(_, product)| product));
    let total = products.len() * weights.len();
    for group in products {
        let mut timed = Vec::new();
        for (name, product) in &group {
            output.progress(
                &format!("timing {}", product.class()),
                rows.all().len() + timed.len(),
                total,
            );
            let all = candidates(runner, product)?;
            match all.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)) {
                Some((choice, us)) => timed.push((*name, product, choice.label(), us)),
                None => output.note(format!("{}: too large for this device", product.class())),
            }
        }
        let f16 = timed.first().filter(|row| row.0 == ENGINES[0]).map(|row| row.3);
        for (name, product, kernel, us) in &timed {
            let same = timed.iter().filter(|other| other.1.weight == product.weight);
            let best = same.map(|other| other.3).fold(f64::INFINITY, f64::min);
            rows.push(row(runner, name, product, kernel, *us, (best, f16)))?;
        }
    }
    Ok(())
}

fn row(
    runner: &Runner,
    engine: &str,
    product: &MatmulShape,
    kernel: &str,
    us: f64,
    (best, f16): (f64, Option<f64>),
) -> Map<String, Value> {
    let bytes = product.weight.bytes(product.rows, product.columns) as f64;
    let mut fields = device_columns(runner);
    let own = json!({
        "shape": format!("{}x{}", product.rows, product.columns),
        "tokens": product.tokens,
        "weight": product.weight.label(),
        "engine": engine,
        "us": round(us),
        "quickest": us <= best,
        "times_as_fast_as_f16": f16.map(|f16| round(f16 / us)),
        "gbps": round(bytes / us / 1e3),
        "kernel": kernel,
    });
    fields.extend(own.as_object().cloned().unwrap_or_default());
    fields
}
