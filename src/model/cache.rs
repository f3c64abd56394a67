//! The key-value cache of a batch of sequences. How much each holds stands in a buffer, not in a recording.

use std::cell::OnceCell;

use super::pairs::Parts;
use crate::device::{Device, HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::families::{Config, Rope};
use crate::graph::{Compute, KeyValueCache, Paired, PairedRows};
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::kernels::kv::{CacheType, Cached};
use crate::tensor::DType;

/// The KV cache: keys and values of every layer, and the rotary tables of the positions they may hold.
#[derive(Debug)]
pub struct Cache {
    stores: Vec<(Cached, Cached)>,
    places: Vec<usize>, // of each layer's keys and values in `stores`
    past: Tensor,
    ropes: Vec<Tensor>,
    lengths: Vec<u32>,
    capacity: usize,
    /// The parts of the rows that it holds, of a model with an encoder: known from the pass that begins with the sources.
    parts: OnceCell<(Parts, PairedRows)>,
}

impl Cache {
    /// An empty cache of `sequences` sequences with `capacity` tokens each, of the type that passes ask for.
    pub fn new(
        device: &Device,
        config: &Config,
        sequences: usize,
        capacity: usize,
        compute: Compute,
    ) -> Result<Self> {
        let places = (0..config.layers()).collect();
        Self::with_places(device, config, sequences, capacity, compute, places)
    }

    /// A cache that holds one layer at a time (of each number of heads, where layers differ): enough for passes that never
    /// continue, evaluation for instance.
    pub fn single_layer(
        device: &Device,
        config: &Config,
        sequences: usize,
        capacity: usize,
        compute: Compute,
    ) -> Result<Self> {
        let mut seen: Vec<usize> = Vec::new();
        let place = |kv_heads: usize| {
            let found = seen.iter().position(|seen| *seen == kv_heads);
            found.unwrap_or_else(|| {
                seen.push(kv_heads);
                seen.len() - 1
            })
        };
        let places = config.blocks.iter().map(|b| b.kv_heads).map(place).collect();
        Self::with_places(device, config, sequences, capacity, compute, places)
    }

    fn with_places(
        device: &Device,
        config: &Config,
        sequences: usize,
        capacity: usize,
        compute: Compute,
        places: Vec<usize>,
    ) -> Result<Self> {
        check(config, compute)?;
        let (ty, size) = (compute.cache_type(), (sequences, capacity));
        let mut stores = Vec::new();
        for (place, widths) in places.iter().zip(&config.blocks) {
            if *place == stores.len() {
                let columns = (widths.kv_heads * config.head_dim, config.head_dim);
                stores.push((
                    Cached::new(device, ty, size, columns, "cached keys")?,
                    Cached::new(device, ty, size, columns, "cached values")?,
                ));
            }
        }
        let table = |rope: &Rope| {
            let values = rope.table(config.head_dim, capacity);
            let table = HostTensor::from_f32(DType::F32, &[capacity, config.head_dim], &values);
            device.upload(&table, "rotations")
        };
        Ok(Self {
            stores,
            places,
            past: device.upload(&HostTensor::zeros(DType::U32, &[sequences]), "cache lengths")?,
            ropes: config.ropes.iter().map(table).collect::<Result<_>>()?,
            lengths: vec![0; sequences],
            capacity,
            parts: OnceCell::new(),
        })
    }

    /// Tokens that each sequence may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens that each sequence holds.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// A layer of it, for a pass over so many new tokens of each sequence.
    pub fn layer_for(&self, index: usize, tokens: usize) -> KeyValueCache<'_> {
        let held = self.lengths.iter().copied().max().unwrap_or(0) as usize;
        assert!(held + tokens <= self.capacity, "a pass fits its cache: {held} + {tokens} tokens");
        let (keys, values) = self.layer(index);
        KeyValueCache {
            keys,
            values,
            past: &self.past,
            bound: self.bound(tokens),
            ropes: &self.ropes,
            paired: self.parts.get().map(|(_, rows)| Paired { rows, begins: held == 0 }),
        }
    }

    /// Takes the parts of the rows that the next pass begins with.
    pub(super) fn begin(&self, device: &Device, parts: Option<Parts>) -> Result<()> {
        let Some(parts) = parts else { return Ok(()) };
        if let Some((known, _)) = self.parts.get() {
            assert_eq!(*known, parts, "a cache is cleared before it begins with other rows");
            return Ok(());
        }
        let rows = parts.upload(device, 0..self.lengths.len())?;
        let set = self.parts.set((parts, rows));
        assert!(set.is_ok(), "nobody else sets it");
        Ok(())
    }

    /// Takes the parts of another cache's rows, from which this one goes on.
    pub(super) fn go_on_from(&self, other: &Cache) {
        if let Some(parts) = other.parts.get() {
            let set = self.parts.set(parts.clone());
            assert!(set.is_ok(), "a cache that goes on from another holds nothing");
        }
    }

    fn layer(&self, index: usize) -> (&Cached, &Cached) {
        let (key, value) = &self.stores[self.places[index]];
        (key, value)
    }

    /// The first sequences of these, one for each of `lengths`, which says how many tokens they hold: in the same memory, counted apart.
    pub(super) fn leading(&self, device: &Device, lengths: &[u32]) -> Result<Self> {
        assert!(lengths.len() <= self.lengths.len(), "sequences of this cache");
        let past = HostTensor::from_u32(&[lengths.len()], lengths);
        Ok(Self {
            stores: self.stores.clone(),
            places: self.places.clone(),
            past: device.upload(&past, "cache lengths")?,
            ropes: self.ropes.clone(),
            lengths: lengths.to_vec(),
            capacity: self.capacity,
            parts: OnceCell::new(),
        })
    }

    /// Says how many tokens each sequence holds: what was copied there, or those of its tokens that count where sequences
    /// of several lengths were passed as rows of one. What stands behind them is never read before it is replaced.
    pub fn hold(&mut self, device: &Device, lengths: &[u32]) -> Result<()> {
        assert_eq!(lengths.len(), self.lengths.len(), "a length a sequence");
        self.lengths.copy_from_slice(lengths);
        if lengths.iter().all(|length| *length == 0) {
            self.parts.take();
        }
        device.write(&self.past, &self.lengths)
    }

    /// What [`Cache::copy`] copies: for every sequence here, a sequence of `from` and how many of its first tokens.
    /// `None`: nothing.
    pub fn copies(
        &self,
        device: &Device,
        from: &Cache,
        sources: &[(usize, usize)],
    ) -> Result<Option<Rows>> {
        let mut pairs = Vec::new();
        for (sequence, (source, tokens)) in sources.iter().enumerate() {
            assert!(*tokens <= self.capacity, "a prefix fits its cache");
            let (there, here) = (source * from.capacity, sequence * self.capacity);
            pairs.extend((0..*tokens).map(|t| ((there + t) as u32, (here + t) as u32)));
        }
        let pairs = (!pairs.is_empty()).then_some(pairs);
        pairs.map(|pairs| Rows::upload(device, &pairs)).transpose()
    }

    /// Copies a layer's keys and values of `from`, the rows that [`Cache::copies`] listed.
    pub fn copy(&self, device: &Device, layer: usize, from: &Cache, list: &Rows) -> Result<()> {
        let ((keys, values), (from_keys, from_values)) = (self.layer(layer), from.layer(layer));
        for (from, to) in [(from_keys, keys), (from_values, values)] {
            for ((from, width), (to, _)) in from.rows().zip(to.rows()) {
                rows(device, from, to, width, list)?;
            }
        }
        Ok(())
    }

    /// Counts `tokens` new tokens in every sequence, after their pass has been recorded.
    pub fn advance(&mut self, device: &Device, tokens: usize) -> Result<()> {
        self.lengths.iter_mut().for_each(|length| *length += tokens as u32);
        device.write(&self.past, &self.lengths)
    }

    /// Keys that none of so many new tokens sees more of: a power of two, or as many as a sequence may hold.
    pub(super) fn bound(&self, tokens: usize) -> usize {
        let held = self.lengths.iter().copied().max().unwrap_or(0) as usize;
        (held + tokens).next_power_of_two().min(self.capacity)
    }

    /// Counts `tokens` new tokens in every sequence, which the device has counted itself ([`Cache::past`]).
    pub(super) fn count(&mut self, tokens: usize) {
        self.lengths.iter_mut().for_each(|length| *length += tokens as u32);
    }

    /// Counts on the device where another cache does, which holds as many tokens of as many sequences.
    pub(super) fn count_with(&mut self, other: &Cache) {
        assert_eq!(self.lengths, other.lengths, "caches hold the same tokens");
        self.past = other.past.clone();
    }

    /// Where the device counts the tokens that each sequence holds, u32 (sequences).
    pub(super) fn past(&self) -> &Tensor {
        &self.past
    }

    /// Forgets everything, so that the next pass begins at position 0.
    pub fn clear(&mut self, device: &Device) -> Result<()> {
        self.lengths.fill(0);
        self.parts.take();
        device.write(&self.past, &self.lengths)
    }
}

/// That a model's heads can be cached in the type that passes ask for.
pub fn check(config: &Config, compute: Compute) -> Result<()> {
    let ty = compute.cache_type();
    ty.format(config.head_dim)?;
    // A cache of another type than activations is read by eights of columns.
    let converted = ty != CacheType::plain(compute.activation);
    let narrow = config.blocks.iter().map(|block| block.kv_heads * config.head_dim);
    match narrow.into_iter().find(|width| converted && !width.is_multiple_of(8)) {
        None => Ok(()),
        Some(width) => Err(Error::Argument {
            argument: format!("--cache-type {}", ty.name),
            expected: "keys of a multiple of 8 columns in each layer".into(),
            found: format!("{width} (head_dim {})", config.head_dim),
        }),
    }
}
