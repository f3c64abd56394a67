//! The test suite: one binary, its trials listed from the kernel table and from the suites' own tables.
//!
//! A folder here is a subject, a file in it a suite; a new suite is its name among the folder's modules and in the table
//! below (modules stay out of a macro because rustfmt would not see them). `layers` holds the rules of the source tree,
//! `machine` opens adapters, `models` loads models, `numbers` compares results with known ones, `program` runs the binary.
//!
//! GPU trials need an adapter. Without one they are listed as ignored, or fail where `LOPPER_REQUIRE_GPU=1` is set.

/// The trials of a suite, each of a function of its name. Those behind `gpu` need an adapter.
macro_rules! suite {
    ($suite:literal: $($test:ident),* $(; gpu: $($on_gpu:ident),*)?) => {
        vec![
            $(crate::machine::trial(concat!($suite, "::", stringify!($test)), $test),)*
            $($(crate::machine::gpu_trial(concat!($suite, "::", stringify!($on_gpu)).into(), $on_gpu),)*)?
        ]
    };
}

mod layers;
mod machine;
mod models;
mod numbers;
mod program;

mod cli {
    pub mod bad_input;
    pub mod cards;
    pub mod chat;
    pub mod commands;
    pub mod inputs;
    pub mod interrupt;
    pub mod manners;
    pub mod outputs;
    pub mod pages;
    pub mod pruning;
    pub mod serve;
    pub mod sizes;
    pub mod tasks;
    pub mod verify;
}

mod formats {
    pub mod gguf;
    pub mod hostile_gguf;
    pub mod hostile_safetensors;
    pub mod quantized;
    pub mod safetensors;
}

mod fuzz {
    pub mod mutations;
    pub mod targets;
}

mod kernels {
    pub mod attention_gradients;
    pub mod beside;
    pub mod canary;
    pub mod finite_differences;
    pub mod importance;
    pub mod integers;
    pub mod lut;
    pub mod moments;
    pub mod optimize;
    pub mod rows;
    pub mod shaders;
    pub mod table;
    pub mod trits;
    pub mod tuning;
}

mod model {
    pub mod adapters;
    pub mod batches;
    pub mod cache_types;
    pub mod classifiers;
    pub mod decoding;
    pub mod distilled_gradients;
    pub mod encoders;
    pub mod ensembles;
    pub mod experts;
    pub mod families;
    pub mod golden;
    pub mod gradients;
    pub mod learned;
    pub mod learning;
    pub mod reading;
    pub mod rewards;
    pub mod sampling;
    pub mod scores;
    pub mod sentence_encoders;
    pub mod sliced;
    pub mod speculative;
    pub mod synth;
    pub mod tape;
    pub mod teachers;
    pub mod walk;
    pub mod widths;
}

mod pipelines {
    pub mod calibrate;
    pub mod codebooks;
    pub mod jobs;
    pub mod levels;
    pub mod merging;
    pub mod minitron;
    pub mod patterns;
    pub mod pruning;
    pub mod recipes;
    pub mod resume;
    pub mod rounded_inputs;
    pub mod rounding;
    pub mod rounds;
    pub mod sparsity;
    pub mod sweep;
    pub mod training;
    pub mod transforming;
    pub mod upcycling;
}

mod quality {
    pub mod comparison;
    pub mod figures;
    pub mod statistics;
    pub mod task_layouts;
    pub mod task_rules;
    pub mod tasks;
}

mod text {
    pub mod hostile;
    pub mod tokenizer;
    pub mod training;
}

use libtest_mimic::{Arguments, Trial};

/// Every suite's list of trials, in the order in which they run.
const SUITES: &[fn() -> Vec<Trial>] = &[
    layers::trials,
    numbers::trials,
    kernels::attention_gradients::trials,
    kernels::beside::trials,
    kernels::canary::trials,
    kernels::finite_differences::trials,
    kernels::importance::trials,
    kernels::integers::trials,
    kernels::lut::trials,
    kernels::moments::trials,
    kernels::optimize::trials,
    kernels::rows::trials,
    kernels::shaders::trials,
    kernels::table::trials,
    kernels::trits::trials,
    kernels::tuning::trials,
    model::adapters::trials,
    model::batches::trials,
    model::cache_types::trials,
    model::classifiers::trials,
    model::decoding::trials,
    model::distilled_gradients::trials,
    model::encoders::trials,
    model::ensembles::trials,
    model::experts::trials,
    model::families::trials,
    model::golden::trials,
    model::gradients::trials,
    model::learned::trials,
    model::learning::trials,
    model::reading::trials,
    model::rewards::trials,
    model::sampling::trials,
    model::scores::trials,
    model::sentence_encoders::trials,
    model::sliced::trials,
    model::speculative::trials,
    model::tape::trials,
    model::teachers::trials,
    model::walk::trials,
    model::synth::trials,
    model::widths::trials,
    pipelines::calibrate::trials,
    pipelines::codebooks::trials,
    pipelines::jobs::trials,
    pipelines::levels::trials,
    pipelines::merging::trials,
    pipelines::minitron::trials,
    pipelines::patterns::trials,
    pipelines::pruning::trials,
    pipelines::recipes::trials,
    pipelines::resume::trials,
    pipelines::rounded_inputs::trials,
    pipelines::rounding::trials,
    pipelines::rounds::trials,
    pipelines::sparsity::trials,
    pipelines::sweep::trials,
    pipelines::training::trials,
    pipelines::transforming::trials,
    pipelines::upcycling::trials,
    formats::gguf::trials,
    formats::hostile_gguf::trials,
    formats::hostile_safetensors::trials,
    formats::quantized::trials,
    formats::safetensors::trials,
    fuzz::targets::trials,
    text::hostile::trials,
    text::tokenizer::trials,
    text::training::trials,
    quality::comparison::trials,
    quality::figures::trials,
    quality::statistics::trials,
    quality::task_layouts::trials,
    quality::task_rules::trials,
    quality::tasks::trials,
    cli::bad_input::trials,
    cli::cards::trials,
    cli::chat::trials,
    cli::commands::trials,
    cli::inputs::trials,
    cli::interrupt::trials,
    cli::manners::trials,
    cli::outputs::trials,
    cli::pages::trials,
    cli::pruning::trials,
    cli::serve::trials,
    cli::sizes::trials,
    cli::tasks::trials,
    cli::verify::trials,
];

fn main() {
    if let Some(code) = lopper::jinja::serve() {
        std::process::exit(code.into());
    }
    if let Some(code) = fuzz::targets::child() {
        std::process::exit(code);
    }
    let mut arguments = Arguments::from_args();
    // A trial more than there are processors: some wait for programs that they stop, or for one device.
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    arguments.test_threads.get_or_insert(processors + 1);
    let trials = SUITES.iter().flat_map(|suite| suite()).collect();
    libtest_mimic::run(&arguments, trials).exit();
}
