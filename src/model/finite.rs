//! Where a pass first has a value that is infinite or no number.

use super::cache::Cache;
use super::pairs::lay_out;
use super::resident::run_block;
use super::source::WeightSource;
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::families::{embedding_name, final_norm_name, head_name, layer_name, module_name};
use crate::graph::{Pass, Slot};
use crate::tensor::DType;

/// Runs a sequence of tokens again, whose `symptom` was not finite, and says where that began: in the input of which linear
/// layer, or behind which block. An error of the pass itself is given instead.
pub fn not_finite(
    source: WeightSource<'_>,
    pass: &Pass<'_>,
    ids: &[u32],
    symptom: impl Into<String>,
) -> Error {
    let place = first(source, pass, ids);
    let (what, value) = match place {
        Ok(Some(place)) => place,
        // A batch may round otherwise than a sequence alone.
        Ok(None) => (String::from("in a batch, not alone"), f32::NAN),
        Err(error) => return error,
    };
    let half = pass.compute.activation == DType::F16;
    let advice = if half { "; f16 ends at 65504, try --compute f32" } else { "" };
    Error::NotFinite {
        what: format!("{}: {what}", symptom.into()),
        found: format!("{value} first there{advice}"),
    }
}

/// The first place, and the value there.
fn first(source: WeightSource<'_>, pass: &Pass<'_>, ids: &[u32]) -> Result<Option<(String, f32)>> {
    let (device, config) = (pass.device, source.config());
    let rows = lay_out(config, ids, 1)?;
    let x = source.embed(pass, &rows.ids)?;
    if let Some((row, value)) = bad(device, &x)? {
        let module = embedding_name(config).trim_end_matches(".weight").to_string();
        return Ok(Some((format!("output of {module}, token {row}"), value)));
    }
    let cache = Cache::single_layer(device, config, 1, ids.len(), pass.compute)?;
    cache.begin(device, rows.paired)?;
    for layer in 0..config.layers() {
        crate::interrupt::check()?;
        let mut found = None;
        let mut tap = |slot: Slot, input: &Tensor| {
            if found.is_none()
                && let Some((row, value)) = bad(device, input)?
            {
                let module = module_name(config, layer, slot);
                found = Some((format!("input of {module}, token {row}"), value));
            }
            Ok(())
        };
        let keys = cache.layer_for(layer, ids.len());
        run_block(pass, config, layer, &*source.block(layer)?, &x, keys, Some(&mut tap))?;
        if found.is_none()
            && let Some((row, value)) = bad(device, &x)?
        {
            found = Some((format!("output of {}, token {row}", layer_name(config, layer)), value));
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    let head = source.head()?;
    let normed = head.norm(pass, &x)?;
    if let Some((row, value)) = bad(device, &normed)? {
        let module = final_norm_name(config).trim_end_matches(".weight").to_string();
        return Ok(Some((format!("output of {module}, token {row}"), value)));
    }
    for row in 0..ids.len() {
        let logits = head.logits(pass, &normed, row..row + 1)?;
        if let Some((_, value)) = bad(device, &logits)? {
            return Ok(Some((format!("output of {}, token {row}", head_name(config)), value)));
        }
    }
    Ok(None)
}

/// The first value of (rows, columns) that is not finite, with its row.
fn bad(device: &Device, values: &Tensor) -> Result<Option<(usize, f32)>> {
    let columns = values.shape().last().copied().unwrap_or(1).max(1);
    let values = device.read(values)?.to_f32();
    let place = values.iter().position(|value| !value.is_finite());
    Ok(place.map(|place| (place / columns, values[place])))
}
