//! The Llama family: `embed`, `block(i)`, `head`. TinyLlama, LiteLlama, SmolLM2, Llama 2 and 3.x differ in numbers only.

use super::cache::Cache;
use super::checkpoint::Weights;
use super::config::Config;
use super::linear::{Compute, Linear, Pass, load, vector};
use crate::device::{Device, HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::kernels::activation::Activation;
use crate::kernels::attention::Attention;
use crate::kernels::attention::causal::causal;
use crate::kernels::embed::gather::gather;
use crate::kernels::kv::append::append;
use crate::kernels::matmul::Destination;
use crate::kernels::matmul::Engine;
use crate::kernels::matmul::product::MatmulShape;
use crate::kernels::matrix::Matrix;
use crate::kernels::norm::rms::rms;
use crate::kernels::rope::rotate::{Target, rotate};
use crate::tensor::DType;

/// A model with all its weights on a device.
#[derive(Debug)]
pub struct Llama {
    config: Config,
    pub(super) embedding: Matrix,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Tensor,
    pub(super) head: Linear,
}

#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Tensor,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) feed_forward_norm: Tensor,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

impl Block {
    /// Copies a block to the device.
    pub(super) fn load(device: &Device, weights: &dyn Weights, layer: usize) -> Result<Self> {
        let linear =
            |name: &str| Linear::load(device, weights, &format!("model.layers.{layer}.{name}"));
        Ok(Self {
            attention_norm: norm(
                device,
                weights,
                &format!("model.layers.{layer}.input_layernorm.weight"),
            )?,
            query: linear("self_attn.q_proj")?,
            key: linear("self_attn.k_proj")?,
            value: linear("self_attn.v_proj")?,
            output: linear("self_attn.o_proj")?,
            feed_forward_norm: norm(
                device,
                weights,
                &format!("model.layers.{layer}.post_attention_layernorm.weight"),
            )?,
            gate: linear("mlp.gate_proj")?,
            up: linear("mlp.up_proj")?,
            down: linear("mlp.down_proj")?,
        })
    }
}

/// The gain of a norm, f32.
pub(super) fn norm(device: &Device, weights: &dyn Weights, name: &str) -> Result<Tensor> {
    let spec = weights.specs().iter().find(|spec| spec.name == name);
    vector(
        device,
        weights,
        spec.expect("the name table lists every norm"),
    )
}

/// The head, which may be the embedding.
pub(super) fn head_of(
    device: &Device,
    weights: &dyn Weights,
    embedding: impl FnOnce() -> Result<Matrix>,
) -> Result<Linear> {
    if !weights.config().tied {
        return Linear::load(device, weights, "lm_head");
    }
    Ok(Linear {
        name: "lm_head".into(),
        weight: embedding()?,
        bias: None,
    })
}

/// Token ids to the residual stream, f32 (tokens, hidden).
pub(super) fn embed(pass: &Pass<'_>, embedding: &Matrix, ids: &[u32]) -> Result<Tensor> {
    let vocabulary = embedding.rows();
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        return Err(Error::Argument {
            argument: "token id".into(),
            expected: format!("less than the vocabulary's {vocabulary}"),
            found: id.to_string(),
        });
    }
    let ids = pass
        .device
        .upload(&HostTensor::from_u32(&[ids.len()], ids), "token ids")?;
    gather(pass.device, embedding, &ids)
}

/// Tokens whose logits fit one binding, and 256 MiB.
pub(super) fn head_rows(device: &Device, config: &Config) -> usize {
    let row = 4 * config.vocab_size as u64;
    (device.max_tensor_bytes().min(256 << 20) / row).max(1) as usize
}

impl Llama {
    /// Copies the weights to the device. `progress` is told of every block.
    pub fn load(
        device: &Device,
        weights: &dyn Weights,
        mut progress: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        let config = weights.config().clone();
        let embedding = Matrix::upload(
            device,
            &load(weights, "model.embed_tokens.weight")?,
            "model.embed_tokens",
        )?;
        let head = head_of(device, weights, || Ok(embedding.clone()))?;
        let mut blocks = Vec::with_capacity(config.layers());
        for layer in 0..config.layers() {
            progress(layer, config.layers())?;
            blocks.push(Block::load(device, weights, layer)?);
        }
        let norm = norm(device, weights, "model.norm.weight")?;
        Ok(Self {
            config,
            embedding,
            blocks,
            norm,
            head,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The products of a pass over so many tokens, one of each shape and type.
    pub fn products(&self, compute: Compute, engine: Engine, tokens: usize) -> Vec<MatmulShape> {
        let mut products: Vec<MatmulShape> = Vec::new();
        let mut add = |linear: &Linear, output: DType| {
            let product = MatmulShape {
                activation: compute.activation,
                bytes: compute.integer_bytes,
                output,
                weight: linear.weight.format(),
                engine,
                rows: linear.weight.rows(),
                columns: linear.weight.columns(),
                tokens,
            };
            if !products.contains(&product) {
                products.push(product);
            }
        };
        for block in &self.blocks {
            for linear in [
                &block.query,
                &block.key,
                &block.value,
                &block.gate,
                &block.up,
            ] {
                add(linear, compute.activation);
            }
            add(&block.output, DType::F32);
            add(&block.down, DType::F32);
        }
        add(&self.head, DType::F32);
        products
    }

    /// Token ids, (sequences * tokens) in sequence order, to the residual stream, f32 (sequences * tokens, hidden).
    pub fn embed(&self, pass: &Pass<'_>, ids: &[u32]) -> Result<Tensor> {
        embed(pass, &self.embedding, ids)
    }

    /// Block `layer`: changes the residual stream `x` in place and appends to the cache's layer.
    pub fn block(&self, pass: &Pass<'_>, layer: usize, x: &Tensor, cache: &Cache) -> Result<()> {
        let (block, config, device) = (&self.blocks[layer], &self.config, pass.device);
        let (epsilon, dtype) = (config.rms_norm_eps as f32, pass.compute.activation);
        let tokens = x.shape()[0] / cache.lengths().len();
        let held = cache.lengths().iter().copied().max().unwrap_or(0) as usize;
        assert!(
            held + tokens <= cache.capacity(),
            "a pass fits its cache: {held} + {tokens} tokens"
        );
        let new = Destination::New(dtype);
        let normed = pass.normed(x, &block.attention_norm, epsilon);
        let query = block.query.apply(pass, &normed, new)?;
        let key = block.key.apply(pass, &normed, new)?;
        let value = block.value.apply(pass, &normed, new)?;
        let (keys, values) = cache.layer(layer);
        let (past, capacity) = (&cache.past, cache.capacity());
        let query = rotate(
            device,
            &query,
            config.head_dim,
            &cache.rotations,
            past,
            Target::New,
        )?;
        rotate(
            device,
            &key,
            config.head_dim,
            &cache.rotations,
            past,
            Target::Cache(keys, capacity),
        )?;
        append(device, &value, past, values, capacity)?;
        let widths = config.blocks[layer];
        let heads = Attention::new(widths.heads, widths.kv_heads, config.head_dim);
        let mixed = causal(device, &query, (keys, values), past, heads, capacity)?;
        let mixed = pass.input(mixed, widths.heads * config.head_dim);
        block.output.apply(pass, &mixed, Destination::Add(x))?;

        let normed = pass.normed(x, &block.feed_forward_norm, epsilon);
        let gated = block.gate.apply(pass, &normed, new)?;
        block
            .up
            .apply(pass, &normed, Destination::Gate(&gated, Activation::Silu))?;
        let gated = pass.input(gated, widths.intermediate_size);
        block.down.apply(pass, &gated, Destination::Add(x))?;
        Ok(())
    }

    /// The residual stream after the last block to the head's input: the final norm.
    pub fn final_norm(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        rms(
            pass.device,
            x,
            &self.norm,
            self.config.rms_norm_eps as f32,
            pass.compute.activation,
        )
    }

    /// Logits, f32 (tokens of the range, vocabulary), from the head's input.
    pub fn head(
        &self,
        pass: &Pass<'_>,
        normed: &Tensor,
        tokens: std::ops::Range<usize>,
    ) -> Result<Tensor> {
        let normed = pass.input(normed.clone(), self.config.hidden_size);
        let new = Destination::New(DType::F32);
        self.head.apply_rows(pass, &normed, tokens, new)
    }

    /// Tokens whose logits fit one binding, and 256 MiB.
    pub fn head_rows(&self, device: &Device) -> usize {
        head_rows(device, &self.config)
    }

    /// Everything up to the head's input. The cache is not advanced.
    pub fn hidden(&self, pass: &Pass<'_>, ids: &[u32], cache: &Cache) -> Result<Tensor> {
        let x = self.embed(pass, ids)?;
        for layer in 0..self.config.layers() {
            interrupt::check()?;
            self.block(pass, layer, &x, cache)?;
        }
        self.final_norm(pass, &x)
    }

    /// A whole pass with everything read back: hidden states (if wanted) `0` (embedding) to `L` (after the final norm),
    /// each f32 (tokens, hidden), and logits, f32 (tokens, vocabulary). `ids` holds `sequences` rows of one length.
    pub fn trace(
        &self,
        pass: &Pass<'_>,
        ids: &[u32],
        sequences: usize,
        hidden: bool,
    ) -> Result<(Vec<HostTensor>, HostTensor)> {
        let length = ids.len() / sequences;
        let cache = Cache::passing(
            pass.device,
            &self.config,
            sequences,
            length,
            pass.compute.activation,
        )?;
        let x = self.embed(pass, ids)?;
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
        let mut logits = Vec::new();
        let step = self.head_rows(pass.device);
        for first in (0..ids.len()).step_by(step) {
            let range = first..(first + step).min(ids.len());
            logits.extend(
                pass.device
                    .read(&self.head(pass, &normed, range)?)?
                    .view()
                    .to_f32(),
            );
        }
        let shape = [ids.len(), self.config.vocab_size];
        Ok((states, HostTensor::from_f32(DType::F32, &shape, &logits)))
    }
}
