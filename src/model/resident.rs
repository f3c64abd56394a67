//! A model with all its weights on a device: `embed`, `block`, `head`.

use std::rc::Rc;

use super::cache::Cache;
use super::checkpoint::Weights;
use super::load;
use super::pairs::lay_out;
use super::streamed::StreamedExperts;
use crate::data::Pooling;
use crate::device::{Device, HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::families::{Config, TensorSpec, embedding_name};
use crate::graph::{
    Adapter, BlockWeights, Compute, CountedWidth, Counter, Counts, Eager, KeyValueCache, Lazy,
    Linear, Parameter, Pass, ProductOutput, RmsNormWeight, Slot, Tap,
};
use crate::interrupt;
use crate::kernels::copy::cast::{cast, scaled};
use crate::kernels::embed::gather::gather;
use crate::kernels::logits::soft_cap::soft_cap;
use crate::kernels::matmul::product::MatmulShape;
use crate::kernels::matmul::{Destination, Engine, Input};
use crate::kernels::matrix::Matrix;
use crate::kernels::norm::rms::rms;
use crate::tensor::DType;

/// A model with all its weights on a device, but perhaps for experts.
#[derive(Debug)]
pub struct Model {
    config: Config,
    pub(super) embedding: Matrix,
    pub(super) blocks: Vec<BlockWeights>,
    /// `None`: the model embeds texts, and what is behind its last block is the result.
    pub(super) head: Option<Head>,
    /// Its experts, where they are not on the device all along.
    experts: Option<Rc<StreamedExperts>>,
}

/// What stands behind the last block: the residual stream there to logits.
#[derive(Clone, Debug)]
pub struct Head {
    /// The final norm, of a family that has one.
    pub norm: Option<RmsNormWeight>,
    /// A product with tanh behind it, on the way of the tokens that texts are read at.
    pub pooler: Option<Linear>,
    /// The product with the vocabulary, or with labels.
    pub linear: Linear,
    /// c of c tanh(logit / c).
    pub soft_cap: Option<f32>,
}

/// The soft cap that is tanh.
pub const TANH: f32 = 1.0;

/// That a model without a head is asked for what one gives.
pub(super) fn headless(config: &Config) -> Error {
    Error::Argument {
        argument: "logits".into(),
        expected: "a model with a head".into(),
        found: format!("one of the family {}, which embeds texts", config.family.name),
    }
}

/// Token ids, (tokens), to the residual stream, f32 (tokens, hidden).
pub fn embed(pass: &Pass<'_>, config: &Config, embedding: &Matrix, ids: &[u32]) -> Result<Tensor> {
    let vocabulary = embedding.rows();
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        return Err(Error::Argument {
            argument: "token id".into(),
            expected: format!("less than the vocabulary's {vocabulary}"),
            found: id.to_string(),
        });
    }
    let ids = pass.device.upload(&HostTensor::from_u32(&[ids.len()], ids), "token ids")?;
    embed_ids(pass, config, embedding, &ids)
}

/// The same of ids on the device, u32 (tokens), each less than the vocabulary.
pub(super) fn embed_ids(
    pass: &Pass<'_>,
    config: &Config,
    embedding: &Matrix,
    ids: &Tensor,
) -> Result<Tensor> {
    let embedded = gather(pass.device, embedding, ids)?;
    match config.embedding_scale() {
        Some(scale) => scaled(pass.device, &embedded, scale, DType::F32),
        None => Ok(embedded),
    }
}

/// Runs new tokens of a batch through a block: changes the residual stream `x`, f32 (tokens, hidden), in place and writes the
/// cache. `tap` is shown the input of each linear layer.
pub fn run_block(
    pass: &Pass<'_>,
    config: &Config,
    layer: usize,
    block: &BlockWeights,
    x: &Tensor,
    cache: KeyValueCache<'_>,
    tap: Option<&mut Tap<'_>>,
) -> Result<()> {
    let mut reborrowed;
    let tap: Option<&mut Tap<'_>> = match tap {
        Some(tap) => {
            reborrowed = |slot: Slot, input: &Tensor| tap(slot, input);
            Some(&mut reborrowed)
        }
        None => None,
    };
    let mut graph = Eager::new(*pass, block, cache, tap);
    let shape = config.block_shape(layer);
    let result = (config.family.blocks.eager)(&mut graph, Lazy::Ready(x.clone()), &shape)?;
    debug_assert!(matches!(result, Lazy::Ready(_)), "a block ends with a sum onto the stream");
    Ok(())
}

/// What a token's pass through a block of a model with these tensors comes to.
pub fn block_counts(config: &Config, specs: &[TensorSpec], layer: usize) -> Counts {
    let rows = |slot: Slot| {
        let found = specs.iter().find(|spec| (spec.layer, spec.slot) == (Some(layer), slot));
        found.map_or(0, |spec| spec.rows)
    };
    counts(config, layer, &rows)
}

/// The same of a block whose weights have so many output features.
fn counts(config: &Config, layer: usize, rows: &dyn Fn(Slot) -> usize) -> Counts {
    let mut counter = Counter::new(rows);
    let x = CountedWidth::new(config.hidden_size);
    let result = (config.family.blocks.counter)(&mut counter, x, &config.block_shape(layer));
    counter.finish(result.expect("counting cannot fail"))
}

impl Head {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.pooler.iter().chain([&self.linear])
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.pooler.iter_mut().chain([&mut self.linear])
    }

    /// Tokens whose logits fit one binding, and 256 MiB.
    pub fn rows_at_once(&self, device: &Device) -> usize {
        let row = 4 * self.linear.weight.rows() as u64;
        (device.max_tensor_bytes().min(256 << 20) / row).max(1) as usize
    }

    /// The head's input: the normalized residual stream, in the activations' type.
    pub fn norm(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let activation = pass.compute.activation;
        match &self.norm {
            Some(RmsNormWeight { gain, epsilon, .. }) => {
                rms(pass.device, x, gain, *epsilon, activation)
            }
            None => cast(pass.device, x, activation),
        }
    }

    /// Logits, f32 (tokens of the range, vocabulary), from the head's input. Not of a head with a pooler.
    pub fn logits(
        &self,
        pass: &Pass<'_>,
        normed: &Tensor,
        tokens: std::ops::Range<usize>,
    ) -> Result<Tensor> {
        assert!(self.pooler.is_none(), "tokens on their way to a pooler are taken by themselves");
        let normed = pass.input(normed.clone(), self.linear.weight.columns());
        self.logits_of_rows(pass, &normed, tokens)
    }

    /// Logits, f32 (tokens, vocabulary or labels), from the residual stream after the last block, which is normalized and pooled on
    /// its way.
    pub(super) fn logits_of(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let mut input = match &self.norm {
            Some(norm) => pass.normed(x, norm),
            None => pass.input(self.norm(pass, x)?, self.linear.weight.columns()),
        };
        if let Some(pooler) = &self.pooler {
            let pooled = pooler.apply(pass, &input, Destination::New(DType::F32))?;
            soft_cap(pass.device, &pooled, TANH)?;
            let pooled = cast(pass.device, &pooled, pass.compute.activation)?;
            input = pass.input(pooled, pooler.weight.rows());
        }
        self.logits_of_rows(pass, &input, 0..input.tokens())
    }

    fn logits_of_rows(
        &self,
        pass: &Pass<'_>,
        normed: &Input,
        tokens: std::ops::Range<usize>,
    ) -> Result<Tensor> {
        let new = Destination::New(DType::F32);
        let logits = self.linear.apply_rows(pass, normed, tokens, new)?;
        if let Some(cap) = self.soft_cap {
            soft_cap(pass.device, &logits, cap)?;
        }
        Ok(logits)
    }
}

impl Model {
    /// Copies the weights to the device. `progress` is told of every block.
    pub fn load(
        device: &Device,
        weights: &dyn Weights,
        progress: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        Self::load_with(device, weights, None, progress)
    }

    /// The same but for experts, which are copied when tokens go there. Such a model runs forward only, without adapters of experts.
    pub fn load_streaming(
        device: &Device,
        weights: &dyn Weights,
        experts: StreamedExperts,
        progress: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        Self::load_with(device, weights, Some(Rc::new(experts)), progress)
    }

    fn load_with(
        device: &Device,
        weights: &dyn Weights,
        experts: Option<Rc<StreamedExperts>>,
        mut progress: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        let config = weights.config().clone();
        let embedding = load::embedding(device, weights)?;
        let mut blocks = Vec::with_capacity(config.layers());
        for layer in 0..config.layers() {
            progress(layer, config.layers())?;
            // The stack's first block has what all of it share.
            let first: Option<&BlockWeights> = blocks.get(config.first_of_stack(layer));
            let mut block = load::block_beside(device, weights, layer, first, experts.is_none())?;
            if let Some(experts) = &experts {
                block.set_experts(experts.clone(), layer);
            }
            blocks.push(block);
        }
        let head = match config.has_head() {
            false => None,
            true => Some(load::head(device, weights, || Ok(embedding.clone()))?),
        };
        Ok(Self { config, embedding, blocks, head, experts })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    /// Its experts, where they are not on the device all along.
    pub fn streamed_experts(&self) -> Option<&StreamedExperts> {
        self.experts.as_deref()
    }

    /// The final norm and the head; an error if it has none.
    pub fn head_weights(&self) -> Result<&Head> {
        self.head.as_ref().ok_or_else(|| headless(&self.config))
    }

    /// The blocks' weights.
    pub fn blocks(&self) -> &[BlockWeights] {
        &self.blocks
    }

    /// The same model with other blocks, of configuration `config`. Weights that both have are on the device once.
    pub fn with_blocks(&self, config: Config, blocks: Vec<BlockWeights>) -> Self {
        assert!(config.layers() == blocks.len(), "a configuration lists its blocks");
        let (embedding, head) = (self.embedding.clone(), self.head.clone());
        Self { config, embedding, blocks, head, experts: self.experts.clone() }
    }

    /// A matrix, norm or bias, by the tensor's name; of an adapter too.
    pub fn tensor(&self, name: &str) -> Option<Parameter> {
        if name == embedding_name(&self.config) {
            return Some(Parameter::Matrix(self.embedding.clone()));
        }
        let linears = self.blocks.iter().flat_map(|block| block.linears().map(|(_, l)| l));
        for linear in linears.chain(self.head.iter().flat_map(Head::linears)) {
            if let Some(rest) = name.strip_prefix(&linear.name) {
                match rest {
                    ".weight" => return Some(Parameter::Matrix(linear.weight.clone())),
                    ".bias" => return linear.bias.clone().map(Parameter::Vector),
                    _ => {}
                }
            }
        }
        let mut biases = self.blocks.iter().filter_map(BlockWeights::position);
        if let Some(bias) = biases.find(|bias| bias.name == name) {
            return Some(Parameter::Vector(bias.table.clone()));
        }
        let norms = self.blocks.iter().flat_map(BlockWeights::norms);
        let mut norms = norms.chain(self.head.iter().filter_map(|head| head.norm.as_ref()));
        norms.find_map(|norm| match &norm.bias {
            _ if norm.name == name => Some(Parameter::Vector(norm.gain.clone())),
            Some(bias) if norm.bias_name() == name => Some(Parameter::Vector(bias.clone())),
            _ => None,
        })
    }

    /// Puts another matrix in the place of a linear layer's, an adapter's factor or the embedding (and of a head that is the
    /// embedding), by the tensor's name. Vectors are changed where they stand.
    pub fn set(&mut self, name: &str, matrix: Matrix) {
        if name == embedding_name(&self.config) {
            if let (true, Some(head)) = (self.config.tied, &mut self.head) {
                head.linear.weight = matrix.clone();
            }
            self.embedding = matrix;
            return;
        }
        let linears = self.blocks.iter_mut().flat_map(BlockWeights::linears_mut);
        for linear in linears.chain(self.head.iter_mut().flat_map(Head::linears_mut)) {
            if name.strip_suffix(".weight") == Some(&linear.name) {
                linear.weight = matrix;
                return;
            }
            let Some(adapter) = &mut linear.adapter else { continue };
            for factor in [&mut adapter.down, &mut adapter.up] {
                if name.strip_suffix(".weight") == Some(&factor.name) {
                    factor.matrix = matrix;
                    return;
                }
            }
        }
        panic!("{name} is a matrix of the model");
    }

    /// Puts an adapter beside a linear layer of a block.
    pub fn adapt(&mut self, module: &str, adapter: Adapter) {
        let mut linears = self.blocks.iter_mut().flat_map(BlockWeights::linears_mut);
        let linear = linears.find(|linear| linear.name == module);
        linear.expect("an adapter's module is a linear layer of a block").adapter = Some(adapter);
    }

    /// The products of a pass over so many tokens, one of each shape and type.
    pub fn products(&self, compute: Compute, engine: Engine, tokens: usize) -> Vec<MatmulShape> {
        let mut products: Vec<MatmulShape> = Vec::new();
        let mut add = |weight: &Matrix, takes: Compute, output: DType| {
            let product = MatmulShape {
                activation: takes.activation,
                bytes: takes.activation_bytes,
                output,
                weight: weight.format(),
                engine,
                rows: weight.rows(),
                columns: weight.columns(),
                tokens,
            };
            if !products.contains(&product) {
                products.push(product);
            }
        };
        for (layer, block) in self.blocks.iter().enumerate() {
            let rows = |slot: Slot| block.find(slot).map_or(0, |linear| linear.weight.rows());
            for (slot, output) in counts(&self.config, layer, &rows).products {
                // What is multiplied is the stream where it changes its basis.
                let stream = matches!(slot, Slot::AttentionShortcut | Slot::FeedForwardShortcut);
                let output = match output {
                    ProductOutput::Activation => compute.activation,
                    ProductOutput::Stream => DType::F32,
                };
                let takes = if stream { Compute::F32 } else { compute };
                // Experts that are not there are of no shape yet.
                if let Some(linear) = block.find(slot) {
                    add(&linear.weight, takes, output);
                }
            }
            for (slot, _) in block.linears() {
                let output = block.result_type(slot, compute.activation);
                let beside: Vec<_> = block.beside(slot, output, compute.activation).collect();
                let weights: Vec<&Matrix> =
                    beside.iter().map(|(_, linear)| &linear.weight).collect();
                // Once for all of them.
                if beside.len() > 1
                    && beside[0].0 == slot
                    && let Some(joined) = Matrix::joined(&weights)
                {
                    add(&joined, compute, output);
                }
            }
        }
        for linear in self.head.iter().flat_map(Head::linears) {
            add(&linear.weight, compute, DType::F32);
        }
        products
    }

    /// Token ids, (sequences * tokens) in sequence order, to the residual stream, f32 (sequences * tokens, hidden).
    pub fn embed(&self, pass: &Pass<'_>, ids: &[u32]) -> Result<Tensor> {
        embed(pass, &self.config, &self.embedding, ids)
    }

    /// The residual stream of the first tokens that a cache will hold, whose sequences have one length: with an encoder, the cache
    /// takes the parts of the rows. Tokens that go on from what it holds are the decoder's.
    pub fn begin(&self, pass: &Pass<'_>, ids: &[u32], cache: &Cache) -> Result<Tensor> {
        if cache.lengths().iter().any(|length| *length > 0) {
            return self.embed(pass, ids);
        }
        let rows = lay_out(&self.config, ids, cache.lengths().len())?;
        cache.begin(pass.device, rows.paired)?;
        self.embed(pass, &rows.ids)
    }

    /// Block `layer`: changes the residual stream `x` in place and appends to the cache's layer.
    pub fn block(&self, pass: &Pass<'_>, layer: usize, x: &Tensor, cache: &Cache) -> Result<()> {
        let tokens = x.shape()[0] / cache.lengths().len();
        let block = &self.blocks[layer];
        let cache = cache.layer_for(layer, tokens);
        run_block(pass, &self.config, layer, block, x, cache, None)
    }

    /// The residual stream after the last block to the head's input: the final norm.
    pub fn final_norm(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        self.head_weights()?.norm(pass, x)
    }

    /// Logits, f32 (tokens of the range, vocabulary), from the head's input.
    pub fn head(
        &self,
        pass: &Pass<'_>,
        normed: &Tensor,
        tokens: std::ops::Range<usize>,
    ) -> Result<Tensor> {
        self.head_weights()?.logits(pass, normed, tokens)
    }

    /// Tokens whose logits fit one binding, and 256 MiB.
    pub fn head_rows(&self, device: &Device) -> usize {
        self.head.as_ref().map_or(1, |head| head.rows_at_once(device))
    }

    /// Everything up to the head's input. The cache is not advanced.
    pub fn hidden(&self, pass: &Pass<'_>, ids: &[u32], cache: &Cache) -> Result<Tensor> {
        self.hidden_through(pass, ids, cache, &mut |_, _| Ok(()))
    }

    /// The same. `see` is shown each block's output, f32 (tokens, hidden), where the next block changes it.
    pub fn hidden_through(
        &self,
        pass: &Pass<'_>,
        ids: &[u32],
        cache: &Cache,
        see: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let x = self.begin(pass, ids, cache)?;
        self.through(pass, &x, cache, see)?;
        self.final_norm(pass, &x)
    }

    /// Takes the residual stream, f32 (tokens, hidden), from before the first block through all blocks; changes it in place.
    pub(super) fn through(
        &self,
        pass: &Pass<'_>,
        x: &Tensor,
        cache: &Cache,
        see: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        for layer in 0..self.config.layers() {
            interrupt::check()?;
            self.block(pass, layer, x, cache)?;
            see(layer, x)?;
        }
        Ok(())
    }

    /// A whole pass with everything read back: hidden states (if wanted) `0` (embedding) to `L` (after the final norm),
    /// each f32 (tokens, hidden), and logits, f32 (tokens, vocabulary or labels); of a model whose head reads a text at its first
    /// token, f32 (sequences, labels). `ids` holds `sequences` rows of one length.
    pub fn trace(
        &self,
        pass: &Pass<'_>,
        ids: &[u32],
        sequences: usize,
        hidden: bool,
    ) -> Result<(Vec<HostTensor>, HostTensor)> {
        let length = ids.len() / sequences;
        let cache =
            Cache::single_layer(pass.device, &self.config, sequences, length, pass.compute)?;
        let x = self.begin(pass, ids, &cache)?;
        let mut states = Vec::new();
        for layer in 0..self.config.layers() {
            interrupt::check()?;
            if hidden {
                states.push(pass.device.read(&x)?);
            }
            self.block(pass, layer, &x, &cache)?;
        }
        let normed = self.final_norm(pass, &x)?;
        if hidden {
            states.push(pass.device.read(&normed)?);
        }
        if self.config.readout.as_ref().is_some_and(|readout| readout.pooling == Pooling::First) {
            let texts: Vec<&[u32]> = ids.chunks_exact(length).collect();
            return Ok((states, pass.device.read(&self.scores_at(pass, &x, &texts, length)?)?));
        }
        let mut logits = Vec::new();
        let step = self.head_rows(pass.device);
        for first in (0..ids.len()).step_by(step) {
            let range = first..(first + step).min(ids.len());
            let some = pass.device.read(&self.head(pass, &normed, range)?)?;
            logits.extend(some.view().to_f32());
        }
        let shape = [ids.len(), self.config.head_rows()];
        Ok((states, HostTensor::from_f32(DType::F32, &shape, &logits)))
    }
}
