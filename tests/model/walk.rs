//! The walk through a model: what it observes and where it leads, beside evaluation.

use libtest_mimic::Failed;
use libtest_mimic::Trial;
use lopper::device::{Device, HostTensor};
use lopper::graph::Slot;
use lopper::measure::{Convention, Windows, losses};
use lopper::methods::quantize::rtn::rtn;
use lopper::methods::quantize::{Grid, Scheme};
use lopper::model::{Cache, Checkpoint, Role, TensorSpec, WeightSource, Weights, run_block};
use lopper::tensor::Packed;
use lopper::walk::{BlockSums, Kind, Statistics, Through, Walk};

use crate::machine::on_each;
use crate::models::{MapWeights, load, pass};
use crate::numbers::{Within, assert_close};
use crate::program::NANO;

const SEQUENCES: usize = 3;
const LENGTH: usize = 11;

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("walk": observes_what_evaluation_computes, halves_add_up);
    trials.extend(on_each("walk::replaced", replaced));
    trials.extend(on_each("walk::streamed_evaluation", streamed_evaluation));
    trials
}

fn ids() -> Vec<u32> {
    (0..SEQUENCES * LENGTH).map(|place| (place * 37 % 500) as u32).collect()
}

fn words(tensors: &[HostTensor]) -> Vec<u32> {
    tensors.iter().flat_map(|tensor| tensor.words.clone()).collect()
}

/// Bit for bit: the inputs that are shown on the walk are those of a pass of evaluation, and so are the streams.
fn observes_what_evaluation_computes() -> Result<(), Failed> {
    let device = &Device::Cpu;
    let pass = pass(device);
    for name in [NANO, "assets/families/gemma3"] {
        let weights = Checkpoint::open(name)?;
        let model = load(device, &weights)?;
        let ids: Vec<u32> = ids().iter().map(|id| id % 300).collect();
        // One microbatch of all sequences, as evaluation has it.
        let source = WeightSource::Resident(&model);
        let mut walk = Walk::new(source, pass, &ids, SEQUENCES, usize::MAX)?;
        let config = weights.config();
        let cache = Cache::single_layer(device, config, SEQUENCES, LENGTH, pass.compute)?;
        let x = model.embed(&pass, &ids)?;
        while let Some(mut step) = walk.next_block()? {
            let layer = step.layer();
            let mut seen: Vec<(Slot, HostTensor)> = Vec::new();
            step.observe(Through::Parent, &mut |slot, input: &_| {
                seen.push((slot, device.read(input)?));
                Ok(())
            })?;
            step.advance(Through::Parent, None)?;
            let mut evaluated = Vec::new();
            let mut tap = |slot: Slot, input: &_| {
                evaluated.push((slot, device.read(input)?));
                Ok(())
            };
            let block = lopper::model::load_block(device, &weights, layer)?;
            let of_layer = cache.layer_for(layer, LENGTH);
            run_block(&pass, config, layer, &block, &x, of_layer, Some(&mut tap))?;
            let slots = |list: &[(Slot, HostTensor)]| {
                list.iter().map(|(slot, _)| *slot).collect::<Vec<_>>()
            };
            assert_eq!(slots(&seen), slots(&evaluated), "layers that were seen");
            assert!(seen.len() >= 7, "{} linear layers", seen.len());
            for ((slot, seen), (_, evaluated)) in seen.iter().zip(&evaluated) {
                assert!(
                    seen.words == evaluated.words,
                    "{name}: input of {slot:?} in layer {layer}"
                );
            }
            let stream = [device.read(&walk.streams()[0])?];
            assert!(words(&stream) == device.read(&x)?.words, "{name}: after layer {layer}");
        }
        // And evaluation without anybody looking ends at the same place.
        let (states, _) = model.trace(&pass, &ids, SEQUENCES, true)?;
        let normed = model.final_norm(&pass, &walk.streams()[0])?;
        let last = states.last().ok_or("there are hidden states")?;
        assert!(device.read(&normed)?.words == last.words, "{name}: the end");
    }
    Ok(())
}

fn scheme() -> Scheme {
    Scheme { grid: Grid::FloatMin, bits: 4, group_size: 32, ty: None }
}

/// A walk that replaces every weight ends where the compressed model does; through the parent's it ends where that does. In
/// microbatches, with blocks on the device all the time or one at a time.
fn replaced(device: &Device) -> Result<(), Failed> {
    let pass = pass(device);
    let weights = Checkpoint::open(NANO)?;
    let round = |spec: &TensorSpec, packed: Packed| match spec.role {
        Role::Linear => rtn(device, &packed, scheme(), &spec.name),
        _ => Ok(packed),
    };
    let compressed = MapWeights(&weights, &round);
    let (parent, child) = (load(device, &weights)?, load(device, &compressed)?);
    let end = |model: &_, ids: &[u32]| -> Result<Vec<f32>, Failed> {
        let model: &lopper::model::Model = model;
        let (states, _) = model.trace(&pass, ids, SEQUENCES, true)?;
        Ok(states.last().ok_or("there are hidden states")?.to_f32())
    };
    let ids = ids();
    for (through, model) in [(Through::Replaced, &child), (Through::Parent, &parent)] {
        for source in [WeightSource::Resident(&parent), WeightSource::Streamed(device, &weights)] {
            let mut walk = Walk::new(source, pass, &ids, SEQUENCES, 2 * LENGTH)?;
            while let Some(mut step) = walk.next_block()? {
                let layer = step.layer();
                for slot in step.linears() {
                    let is = |spec: &&TensorSpec| {
                        (spec.layer, spec.slot, spec.role) == (Some(layer), slot, Role::Linear)
                    };
                    let spec = weights.specs().iter().find(is).ok_or("a linear layer's spec")?;
                    step.replace(slot, &round(spec, weights.load(spec)?)?)?;
                }
                step.advance(through, None)?;
            }
            assert_eq!(walk.streams().len(), 2, "microbatches");
            let mut found = Vec::new();
            for stream in walk.into_streams() {
                found.extend(device.read(&parent.final_norm(&pass, &stream)?)?.to_f32());
            }
            assert_close("the end", &found, &end(model, &ids)?, Within::Norm(1e-6));
        }
    }
    let far = end(&child, &ids)?;
    let near = end(&parent, &ids)?;
    assert!(crate::numbers::relative_error(&far, &near) > 1e-3, "nothing was replaced");
    let mut walk = Walk::new(WeightSource::Resident(&parent), pass, &ids, SEQUENCES, 1)?;
    let mut step = walk.next_block()?.ok_or("a block")?;
    let small = Packed::from_f32(&[0.0; 64], 1, 64);
    assert!(step.replace(Slot::Query, &small).is_err(), "a weight of another shape");
    Ok(())
}

/// Statistics of two halves of a text add up to those of the whole, and agree among themselves.
fn halves_add_up() -> Result<(), Failed> {
    let device = &Device::Cpu;
    let weights = Checkpoint::open(NANO)?;
    let ids = ids();
    let kinds = [
        Kind::Squares,
        Kind::Values,
        Kind::Magnitudes,
        Kind::Maxima,
        Kind::SequenceMagnitudes,
        Kind::Gram,
        Kind::Cosine,
    ];
    let model = load(device, &weights)?;
    let statistics = |ids: &[u32], sequences: usize| -> Result<BlockSums, Failed> {
        let source = WeightSource::Resident(&model);
        let mut walk = Walk::new(source, pass(device), ids, sequences, LENGTH)?;
        let mut statistics = Statistics::new(device, &kinds, LENGTH);
        let step = walk.next_block()?.ok_or("a block")?;
        step.advance(Through::Parent, Some(&mut statistics))?;
        Ok(statistics.read(|slot| format!("{slot:?}"))?)
    };
    let whole = statistics(&ids, SEQUENCES)?;
    let mut halves = statistics(&ids[..LENGTH], 1)?;
    halves.add(&statistics(&ids[LENGTH..], SEQUENCES - 1)?)?;
    // Linear layers with one input have one sum.
    assert_eq!(whole.inputs.len(), 4, "inputs of a block");
    for slot in [Slot::Query, Slot::Value, Slot::Output, Slot::Up, Slot::Down] {
        for sums in [&whole, &halves] {
            let input = sums.input(slot).ok_or("an input")?;
            assert_eq!(input.tokens, (SEQUENCES * LENGTH) as u64, "tokens");
            assert_eq!(input.sequences, SEQUENCES as u64, "sequences");
        }
        let of = |sums: &BlockSums, kind: Kind| -> Result<Vec<f32>, Failed> {
            Ok(sums.sum(slot, kind).ok_or("a statistic")?.to_vec())
        };
        for kind in kinds.into_iter().filter(|kind| *kind != Kind::Cosine) {
            let (halves, whole) = (of(&halves, kind)?, of(&whole, kind)?);
            assert_close(&format!("{slot:?} {kind:?}"), &halves, &whole, Within::Norm(1e-6));
        }
        let (squares, gram) = (of(&whole, Kind::Squares)?, of(&whole, Kind::Gram)?);
        let width = squares.len();
        let diagonal: Vec<f32> = (0..width).map(|i| gram[i * width + i]).collect();
        assert_close("diagonal of the Gram matrix", &diagonal, &squares, Within::Each(1e-5));
    }
    let cosine = whole.mean_cosine().ok_or("a cosine")?;
    assert!((-1.0..1.0).contains(&cosine), "{cosine}");
    let of_halves = halves.mean_cosine().ok_or("a cosine")?;
    assert_close("cosine", &[of_halves], &[cosine], Within::Each(1e-6));
    // What is added must be of the same kinds.
    assert!(halves.add(&BlockSums::default()).is_err(), "nothing to add");
    Ok(())
}

/// An evaluation whose blocks come one at a time gives the same losses, in two groups of windows that one walk takes along.
fn streamed_evaluation(device: &Device) -> Result<(), Failed> {
    let weights = Checkpoint::open(NANO)?;
    let model = load(device, &weights)?;
    let tokens: Vec<u32> = (0..2500).map(|place| (place * 91 % 503) as u32).collect();
    let windows = Windows::new(&tokens, 100, Convention::SecondHalf, Some(1))?;
    let pass = pass(device);
    let resident = losses(&model, &pass, &windows, |_, _, _| Ok(()))?;
    let source = WeightSource::Streamed(device, &weights);
    let streamed = losses(source, &pass, &windows, |_, _, _| Ok(()))?;
    assert_eq!(resident.values().len(), 25 * 49, "losses");
    assert_close("losses", streamed.values(), resident.values(), Within::Each(1e-6));
    Ok(())
}
