//! What each token counts for a layer by the end loss: a layer's squared error matters as far as the loss changes with what the layer
//! gives. To second order that is the error times the squared gradient there (GuidedQuant, Kim et al. 2025, arXiv 2505.07004, section
//! 3.2, with one group of outputs): sum over the tokens t of s_t ||x_t (W - W')^T||^2, where s_t is the sum of the squared gradients at
//! the outputs of token t. Layers with one input have one s, the sum of theirs, so that they keep one Gram matrix: X^T diag(s) X.

use std::collections::BTreeMap;

use super::calibration::Rows;
use super::sequential::input_of;
use crate::error::{Error, Result};
use crate::graph::{Gradient, Slot, output_name};
use crate::model::{BackwardOptions, Pass, TensorSpec, WeightSource, gradients};

/// Tokens that go through a layer at a time.
pub const AT_ONCE: usize = 8192;

/// Of each input of linear layers in blocks the roots of what each token counts. The largest is 1: what they are multiplied with stays
/// within its type, and only their proportions matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenRoots {
    inputs: BTreeMap<(usize, Slot), Vec<f32>>,
}

impl TokenRoots {
    /// Of the inputs of these tensors, for rows of tokens, by a model's own next-token loss; in parts of the rows, so that what is kept
    /// of each layer takes no more than a quarter of the device's spare memory. `progress` is given tokens done, and all.
    pub fn new(
        source: WeightSource<'_>,
        pass: &Pass<'_>,
        specs: &[&TensorSpec],
        rows: &Rows,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let of_output: BTreeMap<String, (usize, Slot)> = (specs.iter())
            .filter_map(|spec| Some((output_name(spec.module()), (spec.layer?, input_of(spec)))))
            .collect();
        let config = source.config();
        let length = rows.length();
        let stream = (4 * config.hidden_size * length * (config.layers() + 1)) as u64;
        let at_once = (pass.device.spare_bytes() / 4 / stream.max(1)).max(1) as usize;
        let mut squares: BTreeMap<(usize, Slot), Vec<f64>> = BTreeMap::new();
        for first in (0..rows.samples).step_by(at_once) {
            let count = at_once.min(rows.samples - first);
            let ids = &rows.ids[first * length..(first + count) * length];
            // The loss is a mean over a part's tokens.
            let size = count as f64 / rows.samples as f64;
            let options = BackwardOptions {
                tensor: &|name| of_output.contains_key(name),
                tokens: AT_ONCE,
                outputs: true,
                ..BackwardOptions::ALL
            };
            let each = (AT_ONCE / length).clamp(1, count) * length;
            let mut parts = Vec::new();
            let mut sink = |part: Gradient| {
                let place = of_output[&part.name];
                parts.push((place, part.part * each, pass.device.read_later(&part.values)?));
                Ok(())
            };
            gradients(source, pass, ids, count, options, &mut |_, _| {}, &mut sink)?;
            for (place, at, reading) in parts {
                let all = squares.entry(place).or_insert_with(|| vec![0.0; rows.ids.len()]);
                let at = first * length + at;
                let found = pass.device.finish(reading)?.to_f32();
                for (sum, square) in all[at..].iter_mut().zip(found) {
                    *sum += f64::from(square) * size * size;
                }
            }
            progress((first + count) * length, rows.ids.len());
        }
        let mut inputs = BTreeMap::new();
        for (place, squares) in squares {
            let largest = squares.iter().copied().fold(0.0, f64::max);
            if !largest.is_finite() {
                return Err(Error::NotFinite {
                    what: format!("gradient of layer {}, {:?}", place.0, place.1),
                    found: largest.to_string(),
                });
            }
            // A last token foretells nothing, and behind the last attention it counts nothing.
            let root =
                |square: &f64| if largest > 0.0 { (square / largest).sqrt() as f32 } else { 1.0 };
            inputs.insert(place, squares.iter().map(root).collect());
        }
        Ok(Self { inputs })
    }

    /// Of a layer's inputs.
    pub fn of(&self, layer: usize) -> BTreeMap<Slot, &[f32]> {
        let layers = self.inputs.iter().filter(|((of, _), _)| *of == layer);
        layers.map(|((_, slot), roots)| (*slot, roots.as_slice())).collect()
    }

    /// All of them, as one row of numbers.
    pub fn to_bytes(&self) -> Vec<u8> {
        let numbers = self.inputs.values().flatten();
        numbers.flat_map(|number| number.to_le_bytes()).collect()
    }

    /// What [`TokenRoots::to_bytes`] gave for the inputs of these tensors and so many tokens; `None` if it is of another size.
    pub fn from_bytes(bytes: &[u8], specs: &[&TensorSpec], tokens: usize) -> Option<Self> {
        let places: BTreeMap<(usize, Slot), ()> =
            specs.iter().filter_map(|spec| Some(((spec.layer?, input_of(spec)), ()))).collect();
        if bytes.len() != 4 * places.len() * tokens {
            return None;
        }
        let numbers: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
        let mut rows = numbers.chunks_exact(tokens.max(1));
        let inputs = places.into_keys().zip(rows.by_ref().map(<[f32]>::to_vec)).collect();
        Some(Self { inputs })
    }
}
