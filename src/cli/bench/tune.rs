//! `lopper tune-device`: measures which kernel is quickest for which product, and keeps the winners.

use std::time::Duration;

use serde_json::{Value, json};

use super::products::{parse_all, parse_format, parse_shape};
use super::rows::round;
use crate::cli::Global;
use crate::cli::output::{Output, table};
use crate::cli::session::open_tuning;
use crate::error::Result;
use crate::kernels::matmul::product::{InputForm, MatmulShape, Winners};
use crate::kernels::matmul::{Engine, tuned};
use crate::measure::speed::tune::{Tuned, tune_all};
use crate::tensor::DType;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Weight formats to tune for, with their group sizes: uint4m-g32, f16, int8-row
    #[arg(
        long = "type",
        value_name = "FORMAT",
        value_delimiter = ',',
        default_value = "f16,int8-g32,uint4m-g32,int4-g32"
    )]
    formats: Vec<String>,
    /// Output x input features of the products: 4096x4096
    #[arg(
        long,
        value_name = "ROWSxCOLUMNS",
        value_delimiter = ',',
        default_value = "1024x1024,4096x4096,14336x4096,4096x14336"
    )]
    shape: Vec<String>,
    /// Tokens at once
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16,64,512", value_parser = clap::value_parser!(u32).range(1..=65536))]
    tokens: Vec<u32>,
    /// Start no further product after this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    budget: Duration,
}

pub(in crate::cli) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let formats = parse_all(&arguments.formats, parse_format)?;
    let shapes = parse_all(&arguments.shape, parse_shape)?;
    let runner = open_tuning(global, output)?;
    // Activations, and bytes of them in integer products: --compute f32, f16, i8.
    let computes: &[(DType, u32)] = if runner.gpu().capabilities().f16 {
        &[(DType::F32, 3), (DType::F16, 2), (DType::F16, 1)]
    } else {
        &[(DType::F32, 3), (DType::F32, 1)]
    };
    let mut products: Vec<MatmulShape> = Vec::new();
    for weight in formats {
        for (rows, columns) in &shapes {
            for tokens in &arguments.tokens {
                let product = |(activation, bytes): &(DType, u32)| MatmulShape {
                    activation: *activation,
                    bytes: *bytes,
                    output: *activation,
                    engine: Engine::Auto,
                    weight,
                    rows: *rows,
                    columns: *columns,
                    tokens: *tokens as usize,
                };
                products.extend(computes.iter().map(product));
            }
        }
    }
    let capabilities = runner.gpu().capabilities();
    // Bytes matter where integers are a candidate only.
    products.retain(|product| {
        let candidates = product.candidates(capabilities);
        product.bytes > 1
            || candidates.iter().any(|choice| matches!(choice.input(), InputForm::Integers(_)))
    });
    output.begin(Value::Array(Vec::new()), text);
    let mut kept = None;
    let tuned = tune_all(
        &runner,
        &products,
        arguments.budget,
        |index, product| {
            output.progress(&format!("tuning {}", product.class()), index, products.len());
        },
        |tuned| {
            output.add(|rows| {
                rows.as_array_mut().into_iter().for_each(|rows| rows.push(json(&tuned)))
            })?;
            let winners = Winners::from([(tuned.class, tuned.winner.0)]);
            // Kept at once: whatever stops the rest, this one is known.
            kept = Some(tuned::store(runner.gpu().adapter(), winners));
            Ok(())
        },
    );
    match kept.transpose() {
        Ok(Some(Some(path))) => output.note(format!("kept in {}", path.display())),
        Ok(Some(None)) => {
            output.note("not kept: the system names no place for caches; set LOPPER_CACHE");
        }
        Ok(None) => {}
        Err(error) => output.note(format!("warning: what was found is not kept: {error}")),
    }
    let left = tuned?;
    output.give()?;
    if left > 0 {
        output.note(format!(
            "{left} of {} products not reached in the time; --budget gives more",
            products.len()
        ));
    }
    Ok(())
}

fn json(tuned: &Tuned) -> Value {
    json!({
        "schema": 1, "class": tuned.class, "candidates": tuned.candidates,
        "analytic": tuned.analytic.0, "analytic_us": tuned.analytic.1,
        "winner": tuned.winner.0, "winner_us": tuned.winner.1,
    })
}

/// The table of what was tuned.
fn text(rows: &Value) -> String {
    let head = ["product", "analytic choice", "us", "winner", "us"];
    let mut lines = vec![head.map(String::from).to_vec()];
    for row in rows.as_array().into_iter().flatten() {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_string();
        let us = |key: &str| round(row[key].as_f64().unwrap_or_default()).to_string();
        let winner = match row["winner"] == row["analytic"] {
            true => "the same".into(),
            false => text("winner"),
        };
        lines.push(vec![
            text("class"),
            text("analytic"),
            us("analytic_us"),
            winner,
            us("winner_us"),
        ]);
    }
    table(&lines)
}
