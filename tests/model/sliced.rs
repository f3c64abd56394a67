//! SliceGPT: what a rotation leaves as it was, what a sliced model computes, and a calibration that is stopped and goes on.

use std::collections::HashMap;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, Random};
use lopper::error::{Error, Result as Outcome};
use lopper::graph::Slot;
use lopper::methods::calibration::{Feed, Rows};
use lopper::methods::linalg::eigen;
use lopper::methods::prune::slice::{
    Basis, Exact, Folded, Progress, Sliced, bases, kept_width, whole_basis,
};
use lopper::model::{Checkpoint, Role, TensorSpec, Weights};
use lopper::tensor::Packed;

use crate::machine::on_each;
use crate::models::{MapWeights, load, logits, pass};
use crate::numbers::{Within, assert_close};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("slicegpt": eigenvectors, counts, calibration_goes_on, families);
    trials.extend(on_each("slicegpt::nothing_cut", nothing_cut));
    trials.extend(on_each("slicegpt::gradients", gradients));
    trials.extend(on_each("slicegpt::divides_by_the_whole_width", divides_by_the_whole_width));
    trials
}

fn ids(vocabulary: usize, count: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(vocabulary as u32)).collect()
}

/// Two rows of 24 tokens.
fn rows(model: &dyn Weights) -> Rows {
    Rows { ids: ids(model.config().vocab_size, 48, 70), samples: 2 }
}

/// The basis of a model's stream for those, without stops.
fn basis(device: &Device, model: &dyn Weights, kept: usize) -> Outcome<Basis> {
    let (folded, rows) = (Folded::new(model)?, rows(model));
    whole_basis(&folded, (pass(device), &rows), kept, None, &mut |_| Ok(()), &mut |_, _| {})
}

/// The bases of each half of each block.
fn several(device: &Device, model: &dyn Weights, kept: usize, feed: Feed) -> Outcome<Vec<Basis>> {
    let (folded, rows) = (Folded::new(model)?, rows(model));
    let input = (pass(device), &rows);
    bases(&folded, input, kept, feed, vec![], &mut |_, _| Ok(()), &mut |_, _| {})
}

/// A matrix is put together again from its eigenvectors, which are orthogonal, in order and of one sign.
fn eigenvectors() -> Result<(), Failed> {
    let size = 41;
    let mut random = Random::new(71);
    // Of fewer vectors than it has columns: singular.
    let x: Vec<f64> = random.values(30 * size, 1.0).into_iter().map(f64::from).collect();
    let matrix: Vec<f64> = (0..size * size)
        .map(|at| (0..30).map(|row| x[row * size + at / size] * x[row * size + at % size]).sum())
        .collect();
    let found = eigen(&matrix, size, "a test")?;
    assert!(found.values.windows(2).all(|two| two[0] >= two[1]), "largest first");
    let vector = |index: usize| &found.vectors[index * size..][..size];
    for i in 0..size {
        let largest = vector(i).iter().fold(0.0f64, |l, v| if v.abs() > l.abs() { *v } else { l });
        assert!(largest > 0.0, "sign of vector {i}");
        for j in 0..size {
            let dot: f64 = vector(i).iter().zip(vector(j)).map(|(a, b)| a * b).sum();
            assert!(
                (dot - f64::from(u8::from(i == j))).abs() < 1e-12,
                "vectors {i} and {j}: {dot}"
            );
        }
    }
    let again: Vec<f64> = (0..size * size)
        .map(|at| {
            let part = |i: usize| found.values[i] * vector(i)[at / size] * vector(i)[at % size];
            (0..size).map(part).sum()
        })
        .collect();
    assert_close("a matrix", &again, &matrix, Within::Norm(1e-13));
    let broken = vec![f64::NAN; 4];
    assert!(matches!(eigen(&broken, 2, "a test"), Err(Error::NotFinite { .. })));
    Ok(())
}

/// Columns that are left: the whole part, rounded down to a multiple.
fn counts() -> Result<(), Failed> {
    for (width, ratio, multiple, expected) in [
        (4096, 0.25, 8, 3072),
        (576, 0.3, 8, 400),
        (576, 0.1, 8, 512),
        (576, 0.0, 8, 576),
        (10, 0.3, 1, 7),
        (100, 0.0, 8, 96),
    ] {
        let found = kept_width(width, ratio, multiple).map_err(|error| format!("{error:?}"))?;
        assert_eq!(found, expected, "{width} at {ratio} in multiples of {multiple}");
    }
    for (ratio, multiple, field) in [
        (1.0, 8, "ratio"),
        (-0.1, 8, "ratio"),
        (f64::NAN, 8, "ratio"),
        (0.5, 0, "multiple"),
        (0.9, 64, "multiple"),
    ] {
        let found = kept_width(128, ratio, multiple).map(|kept| kept.to_string());
        assert_eq!(found.map_err(|error| error.field).err(), Some(field), "{ratio}, {multiple}");
    }
    Ok(())
}

/// Models of random weights have no gains but 1: here none is.
fn with_gains(model: &dyn Weights, spec: &TensorSpec, weight: Packed) -> Packed {
    let hidden = model.config().hidden_size;
    if spec.role != Role::Norm || spec.columns != hidden {
        return weight;
    }
    let gain = |at: usize| 0.5 + ((7 * at + spec.layer.unwrap_or(9)) % 11) as f32 / 8.0;
    let values: Vec<f32> = weight.to_f32().iter().enumerate().map(|(at, v)| v * gain(at)).collect();
    Packed::from_f32(&values, spec.rows, spec.columns)
}

const MODELS: [&str; 5] = [
    "embedded:tiny-llama",
    "assets/families/qwen2",
    "assets/families/qwen3",
    "assets/families/mistral",
    "assets/fixtures/biased",
];

/// A rotation alone changes nothing, one for the whole network or one for each half of each block: tied heads, gains, biases,
/// norms of heads.
fn nothing_cut(device: &Device) -> Result<(), Failed> {
    for name in MODELS {
        let model = Checkpoint::open(name)?;
        let gained = |spec: &TensorSpec, weight: Packed| Ok(with_gains(&model, spec, weight));
        let parent = MapWeights(&model, &gained);
        let width = model.config().hidden_size;
        let ids = ids(model.config().vocab_size, 24, 72);
        let wanted = logits(device, &parent, &ids, 2)?;
        let forms = [
            ("global", vec![basis(device, &parent, width)?]),
            ("compressed", several(device, &parent, width, Feed::Compressed)?),
            ("parent", several(device, &parent, width, Feed::Parent)?),
        ];
        for (form, bases) in forms {
            let sliced = Sliced::new(&parent, device, bases)?;
            assert_eq!(sliced.config().shortcuts, form != "global");
            let found = logits(device, &Exact(sliced), &ids, 2)?;
            assert_close(&format!("{name}, {form}"), &found, &wanted, Within::EachAndOne(1e-4));
        }
        let moved = |spec: &TensorSpec, weight: Packed| {
            let values: Vec<f32> = weight.to_f32().iter().map(|value| 1.01 * value).collect();
            Ok(match spec.slot {
                Slot::Value => Packed::from_f32(&values, weight.rows, weight.columns),
                _ => weight,
            })
        };
        let other = logits(device, &MapWeights(&parent, &moved), &ids, 2)?;
        let far = other.iter().zip(&wanted).any(|(a, b)| (a - b).abs() > 1e-4 * (1.0 + b.abs()));
        assert!(far, "{name}: logits that notice nothing");
    }
    Ok(())
}

/// A rotation leaves the lengths of gradients as they are: of what writes the residual stream, through all shortcuts behind it.
fn gradients(device: &Device) -> Result<(), Failed> {
    let model = Checkpoint::open("assets/families/qwen3")?;
    let bases = several(device, &model, model.config().hidden_size, Feed::Parent)?;
    let sliced = Exact(Sliced::new(&model, device, bases)?);
    let ids = ids(model.config().vocab_size, 24, 74);
    let lengths = |weights: &dyn Weights| -> Result<(f64, Vec<f64>, usize), Failed> {
        let (mut lengths, mut shortcuts) = (HashMap::new(), 0);
        let loss = load(device, weights)?.gradients(&pass(device), &ids, 2, &mut |gradient| {
            let values = device.read(&gradient.values)?.to_f32();
            let square: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
            shortcuts += usize::from(gradient.name.contains("_shortcut."));
            lengths.insert(gradient.name, square.sqrt());
            Ok(())
        })?;
        let written = |spec: &&TensorSpec| matches!(spec.slot, Slot::Output | Slot::Down);
        let all = model.specs().iter().filter(written).map(|spec| lengths[&spec.name]).collect();
        Ok((loss, all, shortcuts))
    };
    let ((loss, wanted, none), (of_sliced, found, some)) = (lengths(&model)?, lengths(&sliced)?);
    assert_eq!((none, some), (0, 2 * model.config().layers()), "shortcuts with gradients");
    assert_close("loss", &[of_sliced], &[loss], Within::Each(1e-5));
    assert_close("lengths of gradients", &found, &wanted, Within::Each(1e-3));
    Ok(())
}

/// `P w` for each vector w of the stream in a tensor, P the projection onto a basis, in f64.
fn projected(basis: &[f32], width: usize, spec: &TensorSpec, weight: &Packed) -> Packed {
    let basis: Vec<f64> = basis.iter().map(|value| f64::from(*value)).collect();
    let project = |vector: &mut [f64]| {
        let before = vector.to_vec();
        vector.fill(0.0);
        for direction in basis.chunks(width) {
            let along: f64 = direction.iter().zip(&before).map(|(a, b)| a * b).sum();
            vector.iter_mut().zip(direction).for_each(|(v, d)| *v += along * d);
        }
    };
    let mut values: Vec<f64> = weight.to_f32().iter().map(|value| f64::from(*value)).collect();
    let reads = matches!(
        spec.slot,
        Slot::Embedding
            | Slot::Query
            | Slot::Key
            | Slot::Value
            | Slot::Gate
            | Slot::Up
            | Slot::Head
    ) && spec.role != Role::Bias;
    let writes = matches!(spec.slot, Slot::Output | Slot::Down);
    if reads || (writes && spec.role == Role::Bias) {
        values.chunks_mut(width).for_each(project);
    } else if writes {
        for column in 0..spec.columns {
            let at = |row: usize| row * spec.columns + column;
            let mut vector: Vec<f64> = (0..width).map(|row| values[at(row)]).collect();
            project(&mut vector);
            (0..width).for_each(|row| values[at(row)] = vector[row]);
        }
    }
    let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
    Packed::from_f32(&values, spec.rows, spec.columns)
}

/// A sliced model is the whole one whose stream stays within the basis, its norms dividing by the root of the mean over all of
/// its columns, with its epsilon: the source's definition, computed here without a cut.
fn divides_by_the_whole_width(device: &Device) -> Result<(), Failed> {
    for name in &MODELS[1..] {
        let model = Checkpoint::open(name)?;
        let width = model.config().hidden_size;
        let gained = |spec: &TensorSpec, weight: Packed| Ok(with_gains(&model, spec, weight));
        let parent = MapWeights(&model, &gained);
        let folded = Folded::new(&parent)?;
        let kept = width / 8 * 5;
        let basis = basis(device, &parent, kept)?;
        let rows = basis.rows().to_vec();
        let within = |spec: &TensorSpec, weight: Packed| Ok(projected(&rows, width, spec, &weight));
        let ids = ids(model.config().vocab_size, 24, 73);
        let wanted = logits(device, &MapWeights(&folded, &within), &ids, 2)?;
        let sliced = Sliced::new(&parent, device, vec![basis])?;
        assert_eq!(sliced.config().hidden_size, kept);
        // Gains are numbers that every float type holds.
        for spec in sliced.specs().iter().filter(|spec| spec.role == Role::Norm) {
            let shared = sliced.load(spec)?.to_f32()[0];
            let cut = spec.columns == kept;
            assert!(!cut || shared.to_bits() & 0xffff == 0, "{name}: {} is {shared}", spec.name);
        }
        let found = logits(device, &Exact(sliced), &ids, 2)?;
        assert_close(name, &found, &wanted, Within::EachAndOne(1e-4));
    }
    Ok(())
}

/// A calibration that stops after a block and goes on with what was saved finds the same basis, bit by bit.
fn calibration_goes_on() -> Result<(), Failed> {
    let model = Checkpoint::open("embedded:nano-llama")?;
    let device = &Device::Cpu;
    let kept = 40;
    let whole = basis(device, &model, kept)?;
    let (folded, rows) = (Folded::new(&model)?, rows(&model));
    let mut saved: HashMap<usize, Progress> = HashMap::new();
    let stopped = whole_basis(
        &folded,
        (pass(device), &rows),
        kept,
        None,
        &mut |progress| {
            saved.insert(progress.blocks, progress.clone());
            Err(Error::Interrupted)
        },
        &mut |_, _| {},
    );
    assert!(matches!(stopped, Err(Error::Interrupted)), "it stops after a block");
    let start = saved.remove(&1).ok_or("what the first block gave")?;
    let mut after = Vec::new();
    let found = whole_basis(
        &folded,
        (pass(device), &rows),
        kept,
        Some(start),
        &mut |progress| {
            after.push(progress.blocks);
            Ok(())
        },
        &mut |_, _| {},
    )?;
    assert_eq!(after, (2..=model.config().layers()).collect::<Vec<_>>(), "blocks seen");
    assert!(found.rows() == whole.rows(), "another basis");
    for feed in [Feed::Compressed, Feed::Parent] {
        let whole = several(device, &model, kept, feed)?;
        let known = whole[..2].to_vec();
        let mut after = Vec::new();
        let save = &mut |place: usize, _: &Basis| {
            after.push(place);
            Ok(())
        };
        let found = bases(&folded, (pass(device), &rows), kept, feed, known, save, &mut |_, _| {})?;
        assert_eq!(after, (2..whole.len()).collect::<Vec<_>>(), "bases found");
        assert!(found == whole, "other bases");
    }
    Ok(())
}

/// What cannot be rotated is refused with the tensor that forbids it.
fn families() -> Result<(), Failed> {
    let model = Checkpoint::open("assets/families/gemma3")?;
    let refused = Folded::new(&model).map(|_| ()).map_err(|error| error.to_string());
    let said = refused.err().ok_or("norms behind the halves of a block were folded")?;
    assert!(said.contains("post_attention_layernorm") && said.contains("rotation"), "{said}");
    Ok(())
}
