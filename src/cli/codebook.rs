//! `lopper codebook`: the entries of a grid, learned from a model's weights, for `quantize --codebook`.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::compress::of_flag;
use super::output::{Output, table};
use super::session::open_model;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::methods::BadField;
use crate::methods::quantize::clusters::Spread;
use crate::methods::sequential::squares;
use crate::model::{Weights, identity};
use crate::stages::quantize::Target;
use crate::tensor::weight_type;
use crate::walk::Kind;
use crate::walk::stored::Stored;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// Entries, 2 to 256
    #[arg(long, default_value_t = 16)]
    entries: usize,
    /// Columns that share a scale: a power of two from 16, or 0 for a whole row
    #[arg(long, default_value_t = 32)]
    group_size: u32,
    /// Modules whose weights count (* stands for anything) [default: the linear layers of the blocks]
    #[arg(long)]
    include: Vec<String>,
    /// Leave out modules that match
    #[arg(long)]
    exclude: Vec<String>,
    /// A column counts as much as the squares of its inputs in these statistics, which `lopper calibrate` took, or in an imatrix file
    #[arg(long, value_name = "STATS")]
    stats: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let flag = |bad: BadField| of_flag(bad.in_recipe());
    let entries = arguments.entries;
    if !(2..=256).contains(&entries) {
        return Err(flag(BadField::new("entries", "2 to 256", entries)));
    }
    let mut target = Target { codebook: vec![-1.0, 1.0], ..Target::of_type("") };
    (target.ty, target.group_size) = (None, Some(arguments.group_size));
    if !arguments.include.is_empty() {
        target.include.clone_from(&arguments.include);
    }
    target.exclude.clone_from(&arguments.exclude);
    target.format().map_err(flag)?;
    let model = open_model(&arguments.model, output)?;
    let chosen = target.tensors(&model).map_err(flag)?;
    if chosen.is_empty() {
        return Err(flag(BadField::new("include", "a pattern that a weight matches", "none")));
    }
    let stored = match &arguments.stats {
        Some(path) => {
            let stored = Stored::open(path)?;
            stored.check_model(model.path(), &identity(&model)?)?;
            stored.require(model.config(), &[Kind::Squares])?;
            Some(stored)
        }
        None => None,
    };
    let (start, total) = (Instant::now(), chosen.len());
    let mut spread = Spread::default();
    let mut known = None;
    for (done, spec) in chosen.into_iter().enumerate() {
        interrupt::check()?;
        output.progress("reading", done, total);
        let weights = match (&stored, spec.layer) {
            (None, _) => None,
            (Some(stored), Some(layer)) => {
                let (_, sums) = match known.take().filter(|(of, _)| *of == layer) {
                    Some(sums) => sums,
                    None => (layer, stored.block(model.config(), layer, &[Kind::Squares])?),
                };
                let found = squares(spec, &sums, None)?;
                known = Some((layer, sums));
                Some(found)
            }
            (Some(_), None) => {
                let expected = "layers of blocks beside statistics, which say nothing of others";
                return Err(flag(BadField::new("include", expected, spec.module())));
            }
        };
        let values = model.load(spec)?.to_f32();
        spread.add(&values, spec.columns, arguments.group_size, weights.as_deref());
    }
    if spread.is_empty() {
        return Err(Error::Argument {
            argument: "MODEL".into(),
            expected: "weights other than 0".into(),
            found: "zeros, or statistics that are all 0".into(),
        });
    }
    let learned = spread.entries(entries);
    let even: Vec<f32> =
        (0..entries).map(|place| 2.0 * place as f32 / (entries - 1) as f32 - 1.0).collect();
    let nf4 = weight_type("nf4").filter(|ty| ty.codes() as usize == entries);
    let nf4 = nf4.map(|ty| (0..ty.codes()).map(|code| ty.level(code)).collect::<Vec<f32>>());
    let mut rows = vec![("learned", spread.loss(&learned)), ("evenly spaced", spread.loss(&even))];
    rows.extend(nf4.map(|nf4| ("nf4", spread.loss(&nf4))));
    output.json(&json!({
        "schema": 1, "model": arguments.model, "tensors": total, "group_size": arguments.group_size, "stats": arguments.stats,
        "codebook": learned, "seconds": start.elapsed().as_secs_f64(),
        "losses": rows.iter().map(|(name, loss)| json!({"entries": name, "loss": loss})).collect::<Vec<_>>(),
    }))?;
    let mut lines = vec![vec!["entries".to_string(), "share of the squares lost".to_string()]];
    lines.extend(rows.iter().map(|(name, loss)| vec![(*name).to_string(), format!("{loss:.3e}")]));
    output.note(table(&lines).trim_end());
    let numbers: Vec<String> = learned.iter().map(f32::to_string).collect();
    output.line(numbers.join(","));
    Ok(())
}
