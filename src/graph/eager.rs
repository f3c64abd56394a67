//! The graph that computes: operations run as soon as what they are fused with is known. A norm runs with the products that
//! take it, the second half of a gate in the product of the first, a sum in the product's epilogue, and keys are rotated on their
//! way into the cache. Layers with the same input are one product, where their weights stand beside each other in memory.

use std::cell::{OnceCell, RefCell};
use std::rc::{Rc, Weak};

use super::routed::Routed;
use super::{
    Activation, Attention, BlockWeights, ExpertLayers, Experts, Graph, Linear, PairedRows, Part,
    Pass, Slot,
};
use crate::device::{HostTensor, Tensor};
use crate::error::Result;
use crate::kernels::attention::Seen;
use crate::kernels::attention::cached::{cached, entering};
use crate::kernels::attention::causal::causal;
use crate::kernels::copy::cast::{cast, scaled};
use crate::kernels::embed::gather::gather;
use crate::kernels::experts::Share;
use crate::kernels::experts::down::down;
use crate::kernels::experts::gated::gated;
use crate::kernels::experts::product::{Outcome, product};
use crate::kernels::gate::activate::activate;
use crate::kernels::gate::glu::glu;
use crate::kernels::kv::Cached;
use crate::kernels::kv::decode::decode;
use crate::kernels::matmul::{Destination, FUSED_GATES, Input};
use crate::kernels::matrix::Matrix;
use crate::kernels::norm::center::center;
use crate::kernels::norm::rms::rms;
use crate::kernels::norm::shift::shift;
use crate::kernels::quantize::inputs::{InputRounding, inputs};
use crate::kernels::residual::add::add;
use crate::kernels::rope::enter::{BINDINGS, enter};
use crate::kernels::rope::rotate::{Target, rotate};
use crate::tensor::DType;

/// Up to so many tokens every expert is given all of them: which ones are its own only the device knows, and leaves the others out;
/// nothing waits for the processor to read it. So the calls of a token are the same each time, and can be recorded.
pub const ROUTED_WITHOUT_READING: usize = 8;

/// Who is shown the input of a linear layer, (tokens, input features): as the product takes it.
pub type Tap<'t> = dyn FnMut(Slot, &Tensor) -> Result<()> + 't;

/// A layer's keys and values of a batch of sequences, and the positions of its new tokens.
#[derive(Clone, Copy, Debug)]
pub struct KeyValueCache<'a> {
    /// (sequences, capacity, kv_heads * head_dim)
    pub keys: &'a Cached,
    /// Likewise.
    pub values: &'a Cached,
    /// Tokens that each sequence holds before the new ones, u32 (sequences).
    pub past: &'a Tensor,
    /// Keys that no new token sees more of: a power of two, or as many as each sequence may hold.
    pub bound: usize,
    /// Cosines and sines of each rotary encoding, f32 (positions, head_dim / 2, 2).
    pub ropes: &'a [Tensor],
    /// Rows of a source and a target, where the model's are. A layer's cache holds the keys and values for the target: of the source
    /// in the source's places, then the target's own.
    pub paired: Option<Paired<'a>>,
}

/// Rows of a source and a target in a pass.
#[derive(Clone, Copy, Debug)]
pub struct Paired<'a> {
    /// The rows.
    pub rows: &'a PairedRows,
    /// Whether the pass begins with the sources; otherwise it goes on with the targets, whose sources the cache remembers.
    pub begins: bool,
}

/// Runs one block over new tokens of a batch.
pub struct Eager<'g> {
    pass: Pass<'g>,
    block: &'g BlockWeights,
    cache: KeyValueCache<'g>,
    tap: Option<&'g mut Tap<'g>>,
    /// Norms that read a residual stream and may not have run yet.
    pending: Vec<Weak<Input>>,
    /// Products that one call computed with another's, until they are asked for.
    beside: RefCell<Vec<(Rc<Input>, Slot, Tensor)>>,
    /// The layers of the expert at hand, of a block whose experts come from elsewhere.
    expert: Option<Rc<ExpertLayers>>,
    /// The inputs that were rounded last, and what became of them: the next layer may take the same.
    rounded: Option<(Rc<Input>, InputRounding, Rc<Input>)>,
}

/// A value that is computed, or what it will be computed from.
#[derive(Debug)]
pub enum Lazy {
    /// Elements as they are: the residual stream (f32), or activations.
    Ready(Tensor),
    /// Activations on their way into products, which share their forms.
    Input(Rc<Input>),
    /// A product that has not run.
    Product {
        /// Its input.
        input: Rc<Input>,
        /// Its weight.
        slot: Slot,
        /// Its result, once something asked for it.
        result: OnceCell<Tensor>,
    },
    /// Queries or keys that have not been rotated.
    Unrotated(Tensor, usize),
    /// Activations on their way into an expert. Of tokens that do not go there they may be anything.
    OfExpert(Rc<Input>, Chosen),
    /// An expert's gated products that have not run.
    ExpertGated(Branch),
    /// All of an expert's feed-forward that has not run, and its down projection: it has a result of the tokens that go there.
    ExpertBranch(Branch, Slot),
    /// An expert's product that has not run: it has a result of the tokens that go there.
    ExpertProduct {
        /// Its input.
        input: Rc<Input>,
        /// Its weight.
        slot: Slot,
        /// The tokens.
        chosen: Chosen,
    },
}

/// An expert's feed-forward up to its down projection.
#[derive(Clone, Debug)]
pub struct Branch {
    input: Rc<Input>,
    /// Gate and up projection.
    slots: [Slot; 2],
    activation: Activation,
    chosen: Chosen,
}

/// The tokens that go to an expert, as the device knows them.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The shares of experts, f32 (tokens, experts).
    shares: Tensor,
    expert: usize,
}

impl std::fmt::Debug for Eager<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "one block, {:?}", self.cache)
    }
}

impl<'g> Eager<'g> {
    /// A pass through a block; `tap` is shown the input of each linear layer.
    pub fn new(
        pass: Pass<'g>,
        block: &'g BlockWeights,
        cache: KeyValueCache<'g>,
        tap: Option<&'g mut Tap<'g>>,
    ) -> Self {
        let (pending, beside) = (Vec::new(), RefCell::default());
        Self { pass, block, cache, tap, pending, beside, expert: None, rounded: None }
    }

    /// A value's elements, in their own type if they are known, in `dtype` if they are computed now.
    fn force(&self, value: &Lazy, dtype: DType) -> Result<Tensor> {
        match value {
            Lazy::Ready(tensor) | Lazy::Unrotated(tensor, _) => Ok(tensor.clone()),
            Lazy::Input(input) | Lazy::OfExpert(input, _) => input.values(self.pass.device),
            Lazy::ExpertProduct { input, slot, .. } => {
                self.block.linear(*slot).apply(&self.pass, input, Destination::New(dtype))
            }
            Lazy::ExpertGated(branch) => self.gated_branch(branch)?.values(self.pass.device),
            Lazy::ExpertBranch(branch, down) => {
                let gated = self.gated_branch(branch)?;
                self.block.linear(*down).apply(&self.pass, &gated, Destination::New(dtype))
            }
            Lazy::Product { input, slot, result } => match result.get() {
                Some(result) => Ok(result.clone()),
                None => {
                    let new = Destination::New(dtype);
                    let made = match self.beside(input, *slot, dtype)? {
                        Some(made) => made,
                        None => self.block.linear(*slot).apply(&self.pass, input, new)?,
                    };
                    Ok(result.get_or_init(|| made).clone())
                }
            },
        }
    }

    /// A product, computed by one call with those of the same input that will be asked for in the same type; `None` where it has to
    /// be computed by itself.
    fn beside(&self, input: &Rc<Input>, slot: Slot, dtype: DType) -> Result<Option<Tensor>> {
        let mut made = self.beside.borrow_mut();
        let is = |(of, its, _): &(Rc<Input>, Slot, Tensor)| Rc::ptr_eq(of, input) && *its == slot;
        if let Some(place) = made.iter().position(is) {
            return Ok(Some(made.swap_remove(place).2));
        }
        let (slots, linears): (Vec<Slot>, Vec<&Linear>) =
            self.block.beside(slot, dtype, self.activation()).unzip();
        if !slots.contains(&slot) {
            return Ok(None);
        }
        let Some(results) = Linear::apply_beside(&linears, &self.pass, input, dtype)? else {
            return Ok(None);
        };
        let all =
            slots.into_iter().zip(results).map(|(slot, result)| (input.clone(), slot, result));
        made.extend(all);
        let place = made.iter().position(is);
        Ok(place.map(|place| made.swap_remove(place).2))
    }

    /// The residual stream, whose place something else is about to take: what still has to read it as it was reads it now.
    fn overwritten(&mut self, stream: &Lazy) -> Result<Tensor> {
        let stream = self.force(stream, DType::F32)?;
        for input in self.pending.drain(..).filter_map(|input| input.upgrade()) {
            input.values(self.pass.device)?;
        }
        Ok(stream)
    }

    /// An expert's product, of the tokens that go there.
    fn expert_product(
        &self,
        (input, slot, chosen): (&Input, Slot, &Chosen),
        outcome: Outcome,
        result: &Tensor,
    ) -> Result<()> {
        let share = Share { shares: &chosen.shares, expert: chosen.expert };
        let weight = &self.block.linear(slot).weight;
        product(self.pass.device, input, weight, share, outcome, result)
    }

    /// What an expert makes of its tokens up to its down projection, by itself.
    fn gated_branch(&self, branch: &Branch) -> Result<Rc<Input>> {
        let Branch { input, slots: [gate, up], activation, chosen } = branch;
        let columns = self.block.linear(*gate).weight.rows();
        let shape = [input.tokens(), columns];
        let gated = self.pass.device.allocate(self.activation(), &shape, "an expert's gate")?;
        self.expert_product((input, *gate, chosen), Outcome::Stored, &gated)?;
        self.expert_product((input, *up, chosen), Outcome::Gated(*activation), &gated)?;
        Ok(Rc::new(self.pass.input(gated, columns)))
    }

    /// Adds what all experts make of their tokens to the stream by one call each for the gated products and the down projections, where
    /// the weights of all stand one behind the other; `false` where they do not.
    fn all_experts(
        &self,
        stream: &Tensor,
        routing: &Routed,
        results: &[(usize, Lazy)],
    ) -> Result<bool> {
        let (mut first, mut both, mut downs) = (None, Vec::new(), Vec::new());
        for (expert, result) in results {
            let Lazy::ExpertBranch(branch, down) = result else { return Ok(false) };
            let first = first.get_or_insert(branch);
            let alike = Rc::ptr_eq(&branch.input, &first.input)
                && branch.activation == first.activation
                && *expert == downs.len();
            if !alike {
                return Ok(false);
            }
            both.extend(branch.slots.map(|slot| &self.block.linear(slot).weight));
            downs.push(&self.block.linear(*down).weight);
        }
        let (Some(branch), true) = (first, results.len() == routing.shares().shape()[1]) else {
            return Ok(false);
        };
        let width = both[0].rows();
        if both.iter().any(|weight| weight.rows() != width) {
            return Ok(false);
        }
        let (Some(both), Some(all_down)) = (Matrix::joined(&both), Matrix::joined(&downs)) else {
            return Ok(false);
        };
        let device = self.pass.device;
        let chosen = routing.chosen(device)?;
        let how = (results.len(), branch.activation);
        let gated = gated(device, &branch.input, &both, &chosen, how)?;
        let gated = self.pass.input(gated, width);
        down(device, &gated, &all_down, (&chosen, routing.shares()), stream)?;
        Ok(true)
    }

    fn activation(&self) -> DType {
        self.pass.compute.activation
    }

    /// Inputs of a linear layer as its product takes them.
    fn rounded(&mut self, input: Rc<Input>, slot: Slot) -> Result<Rc<Input>> {
        let own = self.expert.as_ref().filter(|_| slot.expert().is_some());
        let own = own.and_then(|layers| layers.iter().find(|(own, _)| *own == slot));
        let linear = own.map_or_else(|| self.block.linear(slot), |(_, linear)| linear);
        let Some(how) = linear.rounding else { return Ok(input) };
        if let Some((of, known, rounded)) = &self.rounded
            && Rc::ptr_eq(of, &input)
            && *known == how
        {
            return Ok(rounded.clone());
        }
        let (device, columns) = (self.pass.device, linear.weight.columns());
        let values = inputs(device, &input.values(device)?, columns, how)?;
        let rounded = Rc::new(self.pass.input(values, columns));
        self.rounded = Some((input, how, rounded.clone()));
        Ok(rounded)
    }

    fn paired(&self) -> Paired<'g> {
        self.cache.paired.expect("the cache of a model whose rows have two parts knows them")
    }

    /// Attention over the first so many places of the cache.
    fn over_cache(
        &self,
        query: &Tensor,
        shape: &Attention,
        seen: Seen<'_>,
        bound: usize,
    ) -> Result<Lazy> {
        let (device, dtype) = (self.pass.device, query.dtype());
        let numbers = |cache: &Cached| match cache.plain() {
            Some((known, numbers)) if known == dtype => Ok(numbers.clone()),
            _ => decode(device, cache, bound, dtype),
        };
        let (keys, values) = (numbers(self.cache.keys)?, numbers(self.cache.values)?);
        let capacity = keys.len() / (seen.ends.len() * shape.kv * shape.dim);
        let mixed = causal(device, query, (&keys, &values), seen, *shape, capacity)?;
        Ok(self.input(mixed, shape.query * shape.dim))
    }

    /// The activations (tokens, columns) as products take them.
    fn input(&self, x: Tensor, columns: usize) -> Lazy {
        Lazy::Input(Rc::new(self.pass.input(x, columns)))
    }

    /// Whether one call takes new tokens into the cache: all of one type, on an adapter that binds so much at once.
    fn enters_at_once(&self, new: &[&Tensor]) -> bool {
        let KeyValueCache { keys, values, .. } = self.cache;
        let plain = |cache: &Cached| cache.plain().map(|(dtype, _)| dtype);
        let ty = Some(new[0].dtype());
        new.iter().all(|x| Some(x.dtype()) == ty)
            && plain(keys) == ty
            && plain(values) == ty
            && self.pass.device.max_bindings() >= BINDINGS
    }

    fn rotated(
        &self,
        x: &Tensor,
        rope: usize,
        head_dim: usize,
        target: Target<'_>,
    ) -> Result<Tensor> {
        let KeyValueCache { past, ropes, .. } = self.cache;
        rotate(self.pass.device, x, head_dim, &ropes[rope], past, target)
    }
}

impl Graph for Eager<'_> {
    type Value = Lazy;
    type Routing = Routed;

    fn norm(&mut self, x: &Lazy, slot: Slot) -> Result<Lazy> {
        let norm = self.block.norm(slot);
        let stream = self.force(x, DType::F32)?;
        if slot.feeds_products() {
            let input = Rc::new(self.pass.normed(&stream, norm));
            self.pending.push(Rc::downgrade(&input));
            return Ok(Lazy::Input(input));
        }
        let device = self.pass.device;
        let output = match slot {
            Slot::QueryNorm | Slot::KeyNorm => self.activation(),
            _ => DType::F32,
        };
        let normed = rms(device, &stream, &norm.gain, norm.epsilon, output)?;
        Ok(Lazy::Ready(normed))
    }

    fn layer_norm(&mut self, stream: Lazy, slot: Slot) -> Result<Lazy> {
        let (device, norm) = (self.pass.device, self.block.norm(slot));
        let stream = self.overwritten(&stream)?;
        let centred = center(device, &stream, norm.gain.len())?;
        let normed = rms(device, &centred, &norm.gain, norm.epsilon, DType::F32)?;
        shift(device, &normed, norm.bias.as_ref().expect("a layer norm has a bias"), &stream)?;
        Ok(Lazy::Ready(stream))
    }

    fn look_up(&mut self, stream: Lazy, slot: Slot) -> Result<Lazy> {
        let (device, rows) = (self.pass.device, self.paired().rows);
        let stream = self.overwritten(&stream)?;
        let ids = rows.table_rows(slot);
        let ids = device.upload(&HostTensor::from_u32(&[ids.len()], &ids), "rows of a table")?;
        let found = gather(device, &self.block.linear(slot).weight, &ids)?;
        add(device, &found, &stream)?;
        Ok(Lazy::Ready(stream))
    }

    fn activate(&mut self, x: Lazy, activation: Activation) -> Result<Lazy> {
        let x = self.force(&x, DType::F32)?;
        let columns = x.len() / x.shape()[0];
        let output = self.activation();
        Ok(self.input(activate(self.pass.device, &x, activation, output)?, columns))
    }

    fn linear(&mut self, x: &Lazy, slot: Slot) -> Result<Lazy> {
        let gated;
        let x = match x {
            Lazy::ExpertGated(branch) => {
                let linear = self.block.linear(slot);
                let plain = linear.adapter.is_none() && linear.rounding.is_none();
                if plain && linear.bias.is_none() {
                    return Ok(Lazy::ExpertBranch(branch.clone(), slot));
                }
                gated = Lazy::OfExpert(self.gated_branch(branch)?, branch.chosen.clone());
                &gated
            }
            other => other,
        };
        let input = match x {
            Lazy::Input(input) | Lazy::OfExpert(input, _) => input.clone(),
            other => {
                let x = self.force(other, self.activation())?;
                let x = cast(self.pass.device, &x, self.activation())?;
                let columns = x.len() / x.shape()[0];
                Rc::new(self.pass.input(x, columns))
            }
        };
        let plain = input.clone();
        let input = self.rounded(input, slot)?;
        if let Some(tap) = &mut self.tap {
            tap(slot, &input.values(self.pass.device)?)?;
        }
        if let Some(layers) = self.expert.as_ref().filter(|_| slot.expert().is_some()) {
            // At once: the next expert may take its place.
            let linear = layers.iter().find(|(own, _)| *own == slot);
            let (_, linear) = linear.expect("the expert at hand is the one that is asked for");
            let result = linear.apply(&self.pass, &input, Destination::New(DType::F32))?;
            return Ok(Lazy::Ready(result));
        }
        let linear = self.block.linear(slot);
        if let Some(adapter) = &linear.adapter {
            let result = linear.apply(&self.pass, &input, Destination::New(DType::F32))?;
            adapter.apply(&self.pass, &plain, &result)?;
            // What goes to the residual stream stays as it is, the rest goes on as activations.
            return Ok(Lazy::Ready(match slot.feeds_stream() {
                true => result,
                false => cast(self.pass.device, &result, self.activation())?,
            }));
        }
        if let Lazy::OfExpert(_, chosen) = x
            && linear.bias.is_none()
        {
            let chosen = chosen.clone();
            return Ok(Lazy::ExpertProduct { input, slot, chosen });
        }
        let result = OnceCell::new();
        Ok(Lazy::Product { input, slot, result })
    }

    fn rotary(&mut self, x: Lazy, rope: usize) -> Result<Lazy> {
        Ok(Lazy::Unrotated(self.force(&x, self.activation())?, rope))
    }

    fn attention(
        &mut self,
        query: Lazy,
        key: Lazy,
        value: Lazy,
        shape: &Attention,
    ) -> Result<Lazy> {
        let KeyValueCache { keys, values, past, bound, .. } = self.cache;
        let device = self.pass.device;
        let value = self.force(&value, self.activation())?;
        let columns = shape.query * shape.dim;
        if let (Lazy::Unrotated(query, rope), Lazy::Unrotated(key, of_key)) = (&query, &key)
            && rope == of_key
        {
            let rope = (&self.cache.ropes[*rope], past);
            let new = [query, key, &value];
            if let Some(mixed) = entering(device, new, rope, (keys, values), *shape, bound)? {
                return Ok(Lazy::Input(Rc::new(self.pass.mixed(mixed, columns))));
            }
        }
        let query = match (query, key) {
            (Lazy::Unrotated(query, of_query), Lazy::Unrotated(key, of_key))
                if of_query == of_key && self.enters_at_once(&[&query, &key, &value]) =>
            {
                let rope = (&self.cache.ropes[of_query], past);
                let rows = (keys.numbers(), values.numbers());
                enter(device, (&query, &key, &value), shape.dim, rope, rows, keys.capacity())?
            }
            (query, key) => {
                let query = match query {
                    Lazy::Unrotated(query, rope) => {
                        let target = Target::New(query.dtype());
                        self.rotated(&query, rope, shape.dim, target)?
                    }
                    query => self.force(&query, self.activation())?,
                };
                match (key, keys.plain()) {
                    // Rotated on their way into a cache of plain numbers.
                    (Lazy::Unrotated(key, rope), Some((dtype, numbers)))
                        if dtype == key.dtype() =>
                    {
                        let target = Target::Cache(numbers, keys.capacity());
                        self.rotated(&key, rope, shape.dim, target)?;
                    }
                    (Lazy::Unrotated(key, rope), _) => {
                        let key = self.rotated(&key, rope, shape.dim, Target::New(key.dtype()))?;
                        keys.append(device, &key, past)?;
                    }
                    (key, _) => {
                        keys.append(device, &self.force(&key, self.activation())?, past)?;
                    }
                }
                values.append(device, &value, past)?;
                query
            }
        };
        let mixed = cached(device, &query, (keys, values), past, *shape, bound)?;
        Ok(Lazy::Input(Rc::new(self.pass.mixed(mixed, columns))))
    }

    fn take(&mut self, stream: &Lazy, part: Part) -> Result<Option<Lazy>> {
        let Paired { rows, begins } = self.paired();
        if !begins {
            let stream = self.force(stream, DType::F32)?;
            return Ok((part == Part::Target).then_some(Lazy::Ready(stream)));
        }
        let stream = self.force(stream, DType::F32)?;
        Ok(rows.take(self.pass.device, &stream, part)?.map(Lazy::Ready))
    }

    fn put(&mut self, stream: Lazy, part: Part, own: Lazy) -> Result<Lazy> {
        let Paired { rows, begins } = self.paired();
        if !begins {
            // It was the stream itself.
            return Ok(own);
        }
        let stream = self.overwritten(&stream)?;
        rows.put(self.pass.device, &self.force(&own, DType::F32)?, &stream, part)?;
        Ok(Lazy::Ready(stream))
    }

    fn attention_within(
        &mut self,
        query: Lazy,
        key: Lazy,
        value: Lazy,
        shape: &Attention,
        part: Part,
    ) -> Result<Lazy> {
        let Paired { rows, begins } = self.paired();
        let KeyValueCache { keys, values, past, bound, .. } = self.cache;
        let (device, dtype) = (self.pass.device, self.activation());
        let [query, key, value] = [&query, &key, &value].map(|value| self.force(value, dtype));
        let (query, key, value) = (query?, key?, value?);
        let bias = rows.bias(device, self.block.position(), part)?;
        if part == Part::Source {
            let seen = rows.sources().with_bias(bias.as_ref());
            let mixed = causal(device, &query, (&key, &value), seen, *shape, rows.width())?;
            return Ok(self.input(mixed, shape.query * shape.dim));
        }
        let ends = if begins { rows.starts() } else { past };
        keys.append(device, &key, ends)?;
        values.append(device, &value, ends)?;
        let seen = Seen { first: rows.width(), ..Seen::causal(ends) };
        self.over_cache(&query, shape, seen.with_bias(bias.as_ref()), bound)
    }

    fn remember(&mut self, key: Lazy, value: Lazy) -> Result<()> {
        let KeyValueCache { keys, values, past, .. } = self.cache;
        let device = self.pass.device;
        keys.append(device, &self.force(&key, self.activation())?, past)?;
        values.append(device, &self.force(&value, self.activation())?, past)
    }

    fn recall(&mut self, query: Lazy, shape: &Attention) -> Result<Lazy> {
        let query = self.force(&query, self.activation())?;
        let rows = self.paired().rows;
        self.over_cache(&query, shape, rows.sources(), rows.width())
    }

    fn gate(&mut self, gate: Lazy, up: Lazy, activation: Activation) -> Result<Lazy> {
        if let (Lazy::ExpertProduct { input, slot, chosen }, Lazy::ExpertProduct { slot: up, .. }) =
            (&gate, &up)
            && FUSED_GATES.contains(&activation)
        {
            let (input, slots, chosen) = (input.clone(), [*slot, *up], chosen.clone());
            return Ok(Lazy::ExpertGated(Branch { input, slots, activation, chosen }));
        }
        // Both by one call, or the second one's product takes the first one's result for its gate.
        let beside = match &gate {
            Lazy::Product { input, slot, result } if result.get().is_none() => {
                let made = self.beside(input, *slot, DType::F32)?;
                made.map(|made| result.get_or_init(|| made)).is_some()
            }
            _ => false,
        };
        if beside || !FUSED_GATES.contains(&activation) || !matches!(up, Lazy::Product { .. }) {
            let device = self.pass.device;
            let wide = |value: &Lazy| cast(device, &self.force(value, DType::F32)?, DType::F32);
            let (gate, up) = (wide(&gate)?, wide(&up)?);
            if beside {
                return Ok(Lazy::Input(Rc::new(self.pass.gated(gate, up, activation))));
            }
            let columns = gate.len() / gate.shape()[0];
            let gated = glu(device, &gate, &up, activation, self.activation())?;
            return Ok(self.input(gated, columns));
        }
        let gated = self.force(&gate, self.activation())?;
        let Lazy::Product { input, slot, .. } = &up else {
            unreachable!("what is no product was gated above");
        };
        let linear = self.block.linear(*slot);
        let columns = linear.weight.rows();
        linear.apply(&self.pass, input, Destination::Gate(&gated, activation))?;
        Ok(self.input(gated, columns))
    }

    fn shortcut(&mut self, stream: Lazy, slot: Slot) -> Result<Lazy> {
        let Some(linear) = self.block.find(slot) else { return Ok(stream) };
        let device = self.pass.device;
        let stream = self.overwritten(&stream)?;
        if let Some(tap) = &mut self.tap {
            tap(slot, &stream)?;
        }
        // Three bytes are as good as f32's sums.
        let before = Input::new(scaled(device, &stream, 1.0, DType::F32)?, stream.shape()[1], 3);
        linear.apply(&self.pass, &before, Destination::Into(&stream))?;
        Ok(Lazy::Ready(stream))
    }

    fn add(&mut self, stream: Lazy, x: Lazy) -> Result<Lazy> {
        let device = self.pass.device;
        let stream = self.overwritten(&stream)?;
        match x {
            Lazy::Product { input, slot, result } if result.get().is_none() => {
                let linear = self.block.linear(slot);
                linear.apply(&self.pass, &input, Destination::Add(&stream))?;
            }
            other => {
                let x = self.force(&other, DType::F32)?;
                add(device, &cast(device, &x, DType::F32)?, &stream)?;
            }
        }
        Ok(Lazy::Ready(stream))
    }
    fn route(&mut self, logits: Lazy, experts: Experts) -> Result<Routed> {
        let device = self.pass.device;
        let logits = cast(device, &self.force(&logits, DType::F32)?, DType::F32)?;
        // Who is shown inputs of an expert is shown those of its own tokens.
        let few = logits.shape()[0] <= ROUTED_WITHOUT_READING
            && self.tap.is_none()
            && !self.block.streams_experts();
        match few {
            true => Routed::everywhere(device, &logits, experts),
            false => Routed::by_expert(device, &logits, experts, false),
        }
    }

    fn to_expert(&mut self, x: &Lazy, routing: &Routed, expert: usize) -> Result<Option<Lazy>> {
        let device = self.pass.device;
        if let (true, Lazy::Input(input)) = (routing.is_everywhere(), x) {
            let chosen = Chosen { shares: routing.shares().clone(), expert };
            return Ok(Some(Lazy::OfExpert(input.clone(), chosen)));
        }
        let x = cast(device, &self.force(x, self.activation())?, self.activation())?;
        if routing.is_everywhere() {
            return Ok(Some(Lazy::Ready(x)));
        }
        let own = routing.gather(device, &x, expert)?;
        if own.is_some() {
            self.expert = None;
            self.expert = self.block.streamed(device, expert)?;
        }
        Ok(own.map(|own| {
            let columns = own.shape()[1];
            self.input(own, columns)
        }))
    }

    fn add_experts(
        &mut self,
        stream: Lazy,
        routing: Routed,
        results: Vec<(usize, Lazy)>,
    ) -> Result<Lazy> {
        let stream = self.overwritten(&stream)?;
        self.expert = None;
        if routing.is_everywhere() && self.all_experts(&stream, &routing, &results)? {
            return Ok(Lazy::Ready(stream));
        }
        for (expert, result) in results {
            let result = match result {
                Lazy::ExpertBranch(branch, slot) => {
                    let input = self.gated_branch(&branch)?;
                    Lazy::ExpertProduct { input, slot, chosen: branch.chosen }
                }
                other => other,
            };
            if let Lazy::ExpertProduct { input, slot, chosen } = &result {
                self.expert_product((input, *slot, chosen), Outcome::Added, &stream)?;
                continue;
            }
            let branch = self.force(&result, DType::F32)?;
            routing.add(self.pass.device, expert, &branch, &stream)?;
        }
        Ok(Lazy::Ready(stream))
    }
}
