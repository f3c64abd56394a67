//! Models: checkpoints, their weights on a device, forward and backward passes, cuts, saving. What a family is stands in
//! [`crate::families`]; nothing here knows one by name.

mod adapter;
mod backward;
mod cache;
mod card;
mod checkpoint;
mod cut;
mod decode;
mod embedded;
mod export;
mod finite;
mod formats;
mod generate;
mod identity;
mod load;
mod locate;
mod modules;
mod outline;
mod pairs;
mod readout;
mod resident;
mod save;
mod source;
mod streamed;
mod synth;

pub use crate::data::Pooling;
pub use crate::families::{
    Axis, BlockDims, Config, Group, Member, PrunableDim, Readout, Role, Rope, RopeScaling, Side,
    TensorSpec, groups, input_place, tensor_specs,
};
pub use crate::formats::peft::{AdapterConfig, Pair, Saved, Targets};
pub use crate::graph::{Compute, Linear, Pass};
pub use adapter::Adapters;
pub use backward::{
    BackwardOptions, Divergence, HiddenLoss, HiddenPart, Loss, PendingLoss, ScoreLoss, Taught,
    Teacher, block_gradients, gradients, gradients_later,
};
pub use cache::{Cache, check as check_cache};
pub use card::{CARD_FILE, Card, fenced};
pub use checkpoint::{Checkpoint, CopyOf, Weights};
pub use cut::{KeptChannels, Pruned, codes_survive, column_span, stored};
pub use decode::{Chosen, Decoder};
pub use embedded::EMBEDDED;
pub use export::ExportFormat;
pub use finite::not_finite;
pub use generate::{
    Acceptance, Audience, Batch, Caches, Continuation, Draft, Ending, Ensemble, Generation,
    Sampler, Sampling, Speculation, Start, Steering, generate, generate_batch,
};
pub use identity::{CONFIG_FILE, hash_of_files, identity, identity_of};
pub use load::block as load_block;
pub use outline::Outline;
pub(crate) use pairs::lay_out;
pub use pairs::paired_row;
pub use readout::{FreshHead, Headed};
pub use resident::{Head, Model, block_counts, embed, run_block};
pub use save::{
    Wide, continue_packed, export_gguf, export_hf, export_packed, export_quantized, gguf_type,
    packed_files,
};
pub use source::WeightSource;
pub use streamed::{ExpertUses, StreamedExperts};
pub use synth::Synth;
