//! Experts that are not on the device all along: the router's choice is read, and those that it names are copied there, unless they
//! are from before. Each block keeps as many as it has room for, and gives up the one that was asked for longest ago (Eliseev and
//! Mazur 2023, arXiv 2312.17238, section 3.1): tokens ask for the experts of those before them again.

use std::cell::RefCell;
use std::rc::Rc;

use super::checkpoint::{Checkpoint, Weights};
use super::load;
use super::outline::Outline;
use crate::device::Device;
use crate::error::Result;
use crate::graph::{ExpertLayers, ExpertWeights, Slot};

/// The experts of a model whose other weights are on its device.
pub struct StreamedExperts {
    checkpoint: Checkpoint,
    /// Of each block, how many experts stay on the device.
    room: Vec<usize>,
    state: RefCell<State>,
}

struct State {
    /// Of each block the experts on the device, the one that was asked for last at the end.
    held: Vec<Vec<(usize, Rc<ExpertLayers>)>>,
    uses: ExpertUses,
}

impl std::fmt::Debug for StreamedExperts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamedExperts").field("room", &self.room).finish_non_exhaustive()
    }
}

/// How often experts were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertUses {
    /// In all: once for a block, an expert and a pass with tokens of its.
    pub asked: u64,
    /// Those that were on the device.
    pub held: u64,
    /// Bytes that were copied there for the others.
    pub copied: u64,
}

impl StreamedExperts {
    /// The experts of a checkpoint, of which so many bytes may stay on the device.
    pub fn new(checkpoint: Checkpoint, bytes: u64) -> Result<Self> {
        let outline = Outline::of(&checkpoint)?;
        let layers = checkpoint.config().layers();
        let each = outline.bytes_of_an_expert().max(1);
        let all = checkpoint.config().experts.map_or(0, |experts| experts.count);
        let places = usize::try_from(bytes / each).unwrap_or(usize::MAX);
        // What does not divide goes to the first blocks.
        let room = (0..layers).map(|layer| places / layers + usize::from(layer < places % layers));
        let room = room.map(|room| room.min(all)).collect();
        let state = State { held: vec![Vec::new(); layers], uses: ExpertUses::default() };
        Ok(Self { checkpoint, room, state: RefCell::new(state) })
    }

    /// How often experts were asked for so far.
    pub fn uses(&self) -> ExpertUses {
        self.state.borrow().uses
    }

    /// Experts that stay on the device, of all blocks together.
    pub fn places(&self) -> usize {
        self.room.iter().sum()
    }
}

impl ExpertWeights for StreamedExperts {
    fn expert(&self, device: &Device, layer: usize, expert: usize) -> Result<Rc<ExpertLayers>> {
        let mut state = self.state.borrow_mut();
        let State { held, uses } = &mut *state;
        let held = &mut held[layer];
        uses.asked += 1;
        if let Some(place) = held.iter().position(|(known, _)| *known == expert) {
            uses.held += 1;
            let found = held.remove(place);
            held.push(found.clone());
            return Ok(found.1);
        }
        // First, so that the new one takes its memory.
        if held.len() >= self.room[layer].max(1) {
            held.remove(0);
        }
        let mut layers = Vec::with_capacity(3);
        for slot in [Slot::ExpertGate(0), Slot::ExpertUp(0), Slot::ExpertDown(0)] {
            let slot = slot.of_expert(expert);
            let spec = load::spec(&self.checkpoint, Some(layer), slot);
            uses.copied += self.checkpoint.format(spec)?.bytes(spec.rows, spec.columns);
            layers.push((slot, load::linear(device, &self.checkpoint, spec)?));
        }
        let layers = Rc::new(layers);
        if self.room[layer] > 0 {
            held.push((expert, layers.clone()));
        }
        Ok(layers)
    }
}
