//! The graph that counts: the products of a block, the bytes of activations that its backward pass needs, and operations,
//! from sizes alone.

use super::{Activation, Attention, Experts, Graph, Part, Slot};
use crate::error::Result;
use crate::tensor::DType;

/// The type of a product's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Goes on as an activation.
    Activation,
    /// Is added to the residual stream, or normalized, in f32.
    Stream,
}

/// A value's columns, and the weight whose product it is until something uses it.
#[derive(Clone, Copy, Debug)]
pub struct Width {
    columns: usize,
    product: Option<Slot>,
}

impl Width {
    /// So many columns.
    pub fn new(columns: usize) -> Self {
        let product = None;
        Self { columns, product }
    }
}

/// The cost of one token's pass through a block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Every product in its order: its weight, and the type of its result.
    pub products: Vec<(Slot, Output)>,
    /// Elements of f32 that a backward pass keeps.
    pub kept_f32: usize,
    /// Elements in the type of products that it keeps.
    pub kept_activations: usize,
    /// Elements of f32 that it keeps in the type of products too, if that is another.
    pub kept_casts: usize,
    /// Columns of all results together.
    pub columns: usize,
}

impl Counts {
    /// Bytes that a backward pass keeps of each token, where products take activations of a type.
    pub fn kept_bytes(&self, activation: DType) -> usize {
        let casts = match activation {
            DType::F32 => 0,
            other => other.size() * self.kept_casts,
        };
        4 * self.kept_f32 + activation.size() * self.kept_activations + casts
    }
}

/// Counts one block.
pub struct Counter<'g> {
    /// Output features of a weight; 0 where the block has none.
    rows: &'g dyn Fn(Slot) -> usize,
    counts: Counts,
    /// What was counted before the first expert that a token has no use for.
    without_unused: Option<Counts>,
}

impl std::fmt::Debug for Counter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.counts.fmt(f)
    }
}

impl<'g> Counter<'g> {
    /// A count of a block whose weights have so many output features.
    pub fn new(rows: &'g dyn Fn(Slot) -> usize) -> Self {
        let counts = Counts::default();
        Self { rows, counts, without_unused: None }
    }

    /// The counts, after the block's result was used.
    pub fn finish(mut self, result: Width) -> Counts {
        self.used(&result, Output::Stream);
        // The result is the next block's input, which is kept there.
        self.counts.kept_f32 -= result.columns;
        self.counts
    }

    /// A value is used: a product runs now.
    fn used(&mut self, value: &Width, output: Output) {
        if let Some(slot) = value.product {
            self.counts.products.push((slot, output));
        }
    }

    fn made(&mut self, columns: usize) -> Width {
        self.counts.columns += columns;
        Width::new(columns)
    }
}

impl Graph for Counter<'_> {
    type Value = Width;
    type Routing = Experts;

    fn norm(&mut self, x: &Width, slot: Slot) -> Result<Width> {
        self.used(x, Output::Stream);
        if x.product.is_some() {
            self.counts.kept_f32 += x.columns;
        }
        match slot.feeds_products() {
            true => self.counts.kept_activations += x.columns,
            false => self.counts.kept_f32 += x.columns,
        }
        Ok(self.made(x.columns))
    }

    fn layer_norm(&mut self, stream: Width, _: Slot) -> Result<Width> {
        self.used(&stream, Output::Stream);
        self.counts.kept_f32 += 2 * stream.columns;
        Ok(self.made(stream.columns))
    }

    fn look_up(&mut self, stream: Width, _: Slot) -> Result<Width> {
        self.counts.kept_f32 += stream.columns;
        Ok(self.made(stream.columns))
    }

    fn activate(&mut self, x: Width, _: Activation) -> Result<Width> {
        self.used(&x, Output::Stream);
        self.counts.kept_f32 += x.columns;
        self.counts.kept_activations += x.columns;
        Ok(self.made(x.columns))
    }

    fn linear(&mut self, _: &Width, slot: Slot) -> Result<Width> {
        let columns = (self.rows)(slot);
        self.counts.columns += columns;
        let product = Some(slot);
        Ok(Width { columns, product })
    }

    fn rotary(&mut self, x: Width, _: usize) -> Result<Width> {
        self.used(&x, Output::Activation);
        Ok(self.made(x.columns))
    }

    fn attention(
        &mut self,
        query: Width,
        key: Width,
        value: Width,
        _: &Attention,
    ) -> Result<Width> {
        for value in [query, key, value] {
            self.used(&value, Output::Activation);
            self.counts.kept_f32 += value.columns;
        }
        // The result, also as the next product takes it.
        self.counts.kept_f32 += query.columns;
        self.counts.kept_casts += query.columns;
        Ok(self.made(query.columns))
    }

    /// Every token is counted as if it were of the part.
    fn take(&mut self, stream: &Width, _: Part) -> Result<Option<Width>> {
        self.used(stream, Output::Stream);
        self.counts.kept_f32 += stream.columns;
        Ok(Some(self.made(stream.columns)))
    }

    fn put(&mut self, stream: Width, _: Part, own: Width) -> Result<Width> {
        self.used(&own, Output::Stream);
        self.counts.kept_f32 += stream.columns;
        Ok(self.made(stream.columns))
    }

    fn attention_within(
        &mut self,
        query: Width,
        key: Width,
        value: Width,
        shape: &Attention,
        _: Part,
    ) -> Result<Width> {
        self.attention(query, key, value, shape)
    }

    fn remember(&mut self, key: Width, value: Width) -> Result<()> {
        for value in [key, value] {
            self.used(&value, Output::Activation);
            self.counts.kept_f32 += value.columns;
        }
        Ok(())
    }

    fn recall(&mut self, query: Width, _: &Attention) -> Result<Width> {
        self.used(&query, Output::Activation);
        self.counts.kept_f32 += 2 * query.columns;
        self.counts.kept_casts += query.columns;
        Ok(self.made(query.columns))
    }

    fn gate(&mut self, gate: Width, up: Width, _: Activation) -> Result<Width> {
        self.used(&gate, Output::Activation);
        self.used(&up, Output::Activation);
        self.counts.kept_f32 += 2 * gate.columns;
        self.counts.kept_activations += gate.columns;
        Ok(self.made(gate.columns))
    }

    fn shortcut(&mut self, stream: Width, slot: Slot) -> Result<Width> {
        let columns = (self.rows)(slot);
        if columns == 0 {
            return Ok(stream);
        }
        self.used(&stream, Output::Stream);
        self.counts.kept_f32 += stream.columns;
        self.counts.products.push((slot, Output::Stream));
        Ok(self.made(columns))
    }

    fn add(&mut self, stream: Width, x: Width) -> Result<Width> {
        self.used(&stream, Output::Stream);
        self.used(&x, Output::Stream);
        self.counts.kept_f32 += stream.columns;
        Ok(self.made(stream.columns))
    }
    fn route(&mut self, logits: Width, experts: Experts) -> Result<Experts> {
        self.used(&logits, Output::Stream);
        self.counts.kept_f32 += logits.columns;
        self.made(logits.columns);
        Ok(experts)
    }

    fn to_expert(&mut self, x: &Width, experts: &Experts, expert: usize) -> Result<Option<Width>> {
        // A token goes through as many as it uses; the products of the others are told all the same.
        if expert >= experts.used {
            self.without_unused.get_or_insert_with(|| self.counts.clone());
        }
        self.counts.kept_activations += x.columns;
        Ok(Some(self.made(x.columns)))
    }

    fn add_experts(
        &mut self,
        stream: Width,
        experts: Experts,
        results: Vec<(usize, Width)>,
    ) -> Result<Width> {
        if let Some(before) = self.without_unused.take() {
            let products = std::mem::take(&mut self.counts.products);
            self.counts = Counts { products, ..before };
        }
        self.used(&stream, Output::Stream);
        for (expert, result) in results {
            self.used(&result, Output::Stream);
            // The result is kept for the gradient of its share.
            self.counts.kept_f32 += if expert < experts.used { result.columns } else { 0 };
        }
        self.counts.kept_f32 += stream.columns;
        Ok(self.made(stream.columns))
    }
}
