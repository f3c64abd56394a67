//! Sequences that enter a batch while others run, and leave it.

use std::collections::HashMap;

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::error::{Error, Result as Outcome};
use lopper::model::{Audience, Batch, Checkpoint, Model, Sampling, Start, generate};

use crate::machine::on_each;
use crate::models::{load, pass};
use crate::program::NANO;

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("batches": entering_is_checked);
    trials.extend(on_each("batches::as_alone", as_alone));
    trials
}

/// What was told, by sequence.
#[derive(Default)]
struct Told {
    tokens: HashMap<u64, Vec<u32>>,
    reused: HashMap<u64, usize>,
    /// Sequences that have enough, and of how many tokens.
    enough: HashMap<u64, usize>,
}

impl Audience for Told {
    fn entered(&mut self, id: u64, reused: usize) {
        self.reused.insert(id, reused);
    }

    fn token(&mut self, id: u64, token: u32) -> Outcome<bool> {
        let tokens = self.tokens.entry(id).or_default();
        tokens.push(token);
        Ok(self.enough.get(&id) != Some(&tokens.len()))
    }

    fn failed(&mut self, id: u64, error: Error) {
        panic!("sequence {id}: {error}");
    }
}

/// Texts of several lengths, some longer than others, each with its own way to choose tokens.
fn starts() -> Vec<Start> {
    let drawn = |seed| Sampling { top_k: 30, top_p: 0.95, ..Sampling::at(0.8, seed) };
    let penalized = |sampling| Sampling { repetition_penalty: 1.3, ..sampling };
    let samplings = [
        Sampling::GREEDY,
        drawn(3),
        penalized(Sampling::GREEDY),
        penalized(drawn(4)),
        Sampling::GREEDY,
        Sampling { min_p: 0.05, ..Sampling::at(1.1, 3) },
    ];
    let texts = [(1, 14), (9, 3), (30, 7), (2, 9), (17, 6), (5, 4)];
    let start = |(id, ((length, count), sampling)): (usize, ((u32, usize), Sampling))| {
        let prompt = (0..length).map(|place| 7 + (31 * place + 5 * id as u32) % 280).collect();
        Start { id: id as u64, prompt, count, sampling }
    };
    texts.into_iter().zip(samplings).enumerate().map(start).collect()
}

fn alone(model: &Model, device: &Device, start: &Start) -> Result<Vec<u32>, Failed> {
    let Start { prompt, count, sampling, .. } = start;
    let never = |_| false;
    Ok(generate(model, &pass(device), prompt, *count, *sampling, never, |_| Ok(true))?.tokens)
}

/// Six sequences through three slots of a batch that was warmed: each has the tokens that it has alone, whoever runs beside it, and one that leaves, or has
/// enough, changes nothing for the others. What a prompt begins with is not read twice where the last prompt began so.
fn as_alone(device: &Device) -> Result<(), Failed> {
    let model = load(device, &Checkpoint::open(NANO)?)?;
    let mut batch = Batch::new((&model).into(), pass(device), 3, 64)?;
    // What it was warmed with leaves nothing behind.
    batch.warm()?;
    assert!(batch.is_empty() && batch.has_room());
    let starts = starts();
    let mut told = Told::default();
    told.enough.insert(2, 4);
    let mut coming = starts.iter().cloned();
    let mut most = 0;
    loop {
        if batch.has_room()
            && let Some(start) = coming.next()
        {
            batch.enter(start)?;
        }
        if batch.is_empty() {
            break;
        }
        batch.advance(&mut told)?;
        most = most.max(batch.len());
        if told.tokens.get(&3).is_some_and(|tokens| tokens.len() >= 2) {
            batch.leave(3);
        }
    }
    assert!(batch.has_room() && most == 3, "{most} of 3 slots were used");
    for start in &starts {
        let (expected, found) = (alone(&model, device, start)?, &told.tokens[&start.id]);
        let length = match start.id {
            2 => 4,
            // Steps may be under way when it leaves.
            3 => found.len().clamp(2, 8),
            _ => start.count,
        };
        assert_eq!(found[..], expected[..length], "sequence {}", start.id);
    }

    let longer = [&starts[2].prompt[..], &[40, 41, 42]].concat();
    for (id, prompt) in [(10, starts[2].prompt.clone()), (11, longer)] {
        let start = Start { id, prompt, count: 5, sampling: Sampling::GREEDY };
        batch.enter(start.clone())?;
        while !batch.is_empty() {
            batch.advance(&mut told)?;
        }
        assert_eq!(told.tokens[&id], alone(&model, device, &start)?, "sequence {id}");
    }
    assert_eq!((told.reused[&10], told.reused[&11]), (0, starts[2].prompt.len() - 1));
    Ok(())
}

/// What cannot be is refused, and the batch goes on.
fn entering_is_checked() -> Result<(), Failed> {
    let model = load(&Device::Cpu, &Checkpoint::open(NANO)?)?;
    let mut batch = Batch::new((&model).into(), pass(&Device::Cpu), 1, 16)?;
    let start = |prompt: &[u32], count, temperature| {
        let sampling = Sampling { temperature, ..Sampling::GREEDY };
        Start { id: 1, prompt: prompt.to_vec(), count, sampling }
    };
    for (wrong, said) in [
        (start(&[], 4, 0.0), "prompt"),
        (start(&[5], 0, 0.0), "prompt"),
        (start(&[5; 13], 4, 0.0), "16 at most, found 13 and 4"),
        (start(&[1 << 20], 4, 0.0), "token id"),
        (start(&[5], 4, -1.0), "--temperature"),
    ] {
        let error = batch.enter(wrong).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(said), "{error}");
        assert!(batch.has_room() && batch.is_empty());
    }
    let paired = load(&Device::Cpu, &Checkpoint::open("embedded:tiny-t5")?)?;
    assert!(Batch::new((&paired).into(), pass(&Device::Cpu), 1, 16).is_err(), "it has an encoder");
    let mut told = Told::default();
    batch.enter(start(&[5; 12], 4, 0.0))?;
    assert!(!batch.has_room());
    while !batch.is_empty() {
        batch.advance(&mut told)?;
    }
    assert_eq!(told.tokens[&1].len(), 4);
    Ok(())
}
