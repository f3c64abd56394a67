//! Lopper makes language models small on the GPU people already own.
//!
//! The modules in reading order, from what knows least to what knows most. A module imports only from those above it in
//! this list (a test holds that), so the engine below can be used without the tool on top.
//!
//! - [`error`], [`interrupt`]: what can go wrong.
//! - [`tensor`]: element types and packed weight formats.
//! - [`formats`], [`text`], [`data`]: bytes, tokens, texts. No device.
//! - [`compare`]: the only place where two results are judged equal.
//! - [`gpu`]: wgpu and no maths.
//! - [`device`]: what a kernel is, and the CPU, GPU and checked devices that run one.
//! - [`kernels`]: one formula each, with the reference that defines it.
//! - [`graph`]: what a block function runs on: eagerly, on a tape for gradients, or counting.
//! - [`families`]: each model family's names, configuration keys and block function.
//! - [`model`]: checkpoints, weights on a device, forward and backward passes, generation, saving.
//! - [`walk`]: one block at a time: statistics of its inputs, weights replaced, on to the next.
//! - [`measure`]: how good a model is and how far from its parent, how fast it runs, whether a device can be trusted.
//! - [`methods`]: the compression maths, without wgpu.
//! - [`stages`]: the kinds of steps a recipe is made of; [`recipe`]: what the user asks for.
//! - [`plan`]: recipe and headers to decisions and bytes; pure.
//! - [`run`]: executes a plan, stage by stage over folders on the disk, and writes the artifact.
//! - [`cli`]: arguments and printing; the only place that prints.
//!
//! Invariants. A result that a device computed is f32 or f16 rounded from f32 accumulation. Codes and scales are the same
//! bits on every device. Position and length live in buffers. Nothing in the library panics on input; a broken promise of
//! our own is an assert.

pub mod cli;
pub mod compare;
pub mod data;
pub mod device;
pub mod error;
pub mod families;
pub mod formats;
pub mod gpu;
pub mod graph;
pub mod interrupt;
pub mod kernels;
pub mod measure;
pub mod methods;
pub mod model;
pub mod plan;
pub mod recipe;
pub mod run;
pub mod stages;
pub mod tensor;
pub mod text;
pub mod walk;
