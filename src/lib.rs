//! Lopper makes language models small on the GPU people already own.
//!
//! # Data flow
//!
//! A recipe and a checkpoint's headers make a plan, which is pure and can be printed. Each stage of the plan reads a
//! model ([`model::Weights`]) and leaves a smaller one in a folder; the next stage opens that folder, and a run that was killed
//! goes on at the last one that is whole. Evaluation and exports read the last folder.
//!
//! A model on a device is weights by slot ([`graph::Slot`]). Its family's block function says what happens to them, once, over the trait
//! [`graph::Graph`]; who implements that decides what becomes of it: [`graph::Eager`] computes (fused, over a KV cache),
//! [`graph::Tape`] records for the backward pass, [`graph::Counter`] counts products and bytes. So evaluation, generation,
//! calibration, gradients and memory estimates cannot disagree on what a block is. A pass takes its blocks from a
//! [`model::WeightSource`]: resident, or streamed one at a time where memory is short. A model that is resident may be so but for
//! experts ([`model::StreamedExperts`]): a block asks for those that the router named, forward only. [`walk::Walk`] goes through a
//! model block by block with all calibration tokens, and lets weights be replaced on the way.
//!
//! A pass takes rows of tokens of one length and has one residual stream. A model with an encoder keeps that: a row is a source and a
//! target ([`data::BETWEEN`] parts them), its blocks are numbered through, and each takes its part of the rows out of the stream and puts
//! it back ([`graph::Part`]). What nobody but its block function has to know of it nobody does.
//!
//! Behind the last block stands a head: over the vocabulary, at every token, or over labels, at the one token that stands for a text
//! ([`families::Readout`]), through a pooler where the family has one: a reward model is that with one label. A sentence encoder has
//! none: what its pooling ([`data::Pooling`]) makes of the states of a text's tokens is the result. What a training makes small, and
//! how a text is put into a row of tokens ([`data::training::Reading`]), follow from which of them a model has.
//!
//! # Where a thing lives
//!
//! Decided by what it knows. The modules from what knows least to what knows most; a module imports only from those above it in
//! this list (a test holds that), so the engine below can be used without the tool on top.
//!
//! - [`error`], [`interrupt`], [`contain`]: typed errors with what was expected and found; Ctrl-C; panics of foreign code.
//! - [`disk`]: where every input is opened and every output made.
//! - [`tensor`]: element types and packed weight formats, a row in one table each.
//! - [`plot`]: curves as SVG.
//! - [`jinja`]: templates of strangers, rendered by a process of their own.
//! - [`formats`], [`text`], [`data`]: bytes, tokens, texts. No device.
//! - [`compare`]: the only place where two results are judged equal.
//! - [`gpu`]: wgpu and no maths: adapters, buffers within a budget, recording, submits, timestamps.
//! - [`device`]: what a kernel is, and the CPU, GPU and checked devices that run one.
//! - [`kernels`]: one formula each, with the reference that defines it, its error bound and its cases.
//! - [`graph`]: what a block function runs on.
//! - [`families`]: each model family's names, configuration keys and block function. Nothing outside knows one by name.
//! - [`model`]: checkpoints, weights on a device, forward and backward passes, generation, saving.
//! - [`walk`]: one block at a time: statistics of its inputs, weights replaced, on to the next.
//! - [`measure`]: how good a model is and how far from its parent, how fast it runs, whether a device can be trusted.
//! - [`methods`]: the compression maths, without wgpu.
//! - [`train`]: what is learned, how a step changes it, the loop around it.
//! - [`stages`], [`recipe`], [`plan`], [`run`]: what the user asks for, decided, and executed over work folders.
//! - [`serve`]: models over HTTP. A thread has connections; the caller's has the device, and a batch that requests enter and leave
//!   ([`model::Batch`]).
//! - [`cli`]: arguments and printing; the only place that prints.
//!
//! # Invariants
//!
//! - A result that a device computed is f32, or f16 rounded from f32 accumulation: sums in f16 give NaN on some drivers.
//! - Codes and scales are the same bits on every device: scales are rounded with integer code.
//! - Position and length live in buffers, not in recordings, so that one encoding serves every token.
//! - The residual stream is f32. The eager graph adds to it in place; what still has to read it as it was reads it first.
//! - Every linear layer of a block goes through [`graph::Graph::linear`], or [`graph::Graph::shortcut`] where it takes the stream
//!   itself: there inputs are observed and weights stand in for others.
//! - Outputs appear whole or not at all ([`disk`] makes them all); what a killed run leaves is a work folder, or a hidden
//!   temporary one beside the output, which the next run sweeps.
//! - The library does not panic on input. A broken promise of our own is an assert.
//!
//! # Deliberately absent
//!
//! No sessions, hooks or global flags: state is arguments and return values, but for what a process is as a whole: the wish to
//! stop, and the files it reads and writes. No computation graph that is built, optimized and run
//! later: a block function calls kernels as it goes, and fusing is looking one operation ahead. No model type per family or per
//! quantization. Unsafe code only where the process ends at once or memory is refused,
//! and where a graphics API or the CPU's product library asks for it; each place says why.

pub mod cli;
pub mod compare;
pub mod contain;
pub mod data;
pub mod device;
pub mod disk;
pub mod error;
pub mod families;
pub mod formats;
pub mod gpu;
pub mod graph;
pub mod interrupt;
pub mod jinja;
pub mod kernels;
pub mod measure;
pub mod methods;
pub mod model;
pub mod plan;
pub mod plot;
pub mod recipe;
pub mod run;
pub mod serve;
pub mod stages;
pub mod tensor;
pub mod text;
pub mod train;
pub mod walk;
