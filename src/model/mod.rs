//! Models: what a checkpoint says, the weights on a device, the blocks of each family, cache and sampling.

mod cache;
mod checkpoint;
mod config;
mod config_json;
mod cut;
mod embedded;
mod formats;
mod generate;
mod groups;
mod head_grad;
mod linear;
mod llama;
mod llama_grad;
mod metadata;
mod names;
mod rope;
mod save;
mod streamed;
mod synth;

pub use cache::Cache;
pub use checkpoint::{Checkpoint, Weights};
pub use config::{Config, Widths};
pub use cut::{Cut, Pruned, cut_format};
pub use embedded::EMBEDDED;
pub use generate::{Generation, Sampling, generate};
pub use groups::{Axis, Group, Member, Side, Width, groups};
pub use head_grad::Loss;
pub use linear::{Compute, Linear, Pass};
pub use llama::Llama;
pub use llama_grad::{Wanted, activations, gradients};
pub use names::{Role, TensorSpec, tensor_specs};
pub use rope::RopeScaling;
pub use save::{export_gguf, export_hf, export_packed, gguf_type};
pub use streamed::Layers;
pub use synth::Synth;
