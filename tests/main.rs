//! The test suite: one binary, its trials listed from the kernel table and from the suites' own tables.
//!
//! GPU trials need an adapter. Without one they are listed as ignored, or fail where `LOPPER_REQUIRE_GPU=1` is set.

mod attention_gradients;
mod canary;
mod cli;
mod cli_bad_input;
mod cli_interrupt;
mod cli_pages;
mod cli_pruning;
mod cli_tasks;
mod cli_verify;
mod comparison;
mod distilled_gradients;
mod figures;
mod finite_differences;
mod formats;
mod golden;
mod gradients;
mod hostile_widths;
mod importance;
mod integers;
mod kernels;
mod layers;
mod levels;
mod lut;
mod machine;
mod pipelines;
mod pruning;
mod recipes;
mod scores;
mod shaders;
mod statistics;
mod synth;
mod task_layouts;
mod task_rules;
mod tasks;
mod text;
mod text_hostile;
mod trits;
mod tuning;
mod widths;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(kernels::trials());
    trials.extend(shaders::trials());
    trials.extend(canary::trials());
    trials.extend(golden::trials());
    trials.extend(pipelines::trials());
    trials.extend(recipes::trials());
    trials.extend(layers::trials());
    trials.extend(gradients::trials());
    trials.extend(attention_gradients::trials());
    trials.extend(distilled_gradients::trials());
    trials.extend(finite_differences::trials());
    trials.extend(importance::trials());
    trials.extend(integers::trials());
    trials.extend(lut::trials());
    trials.extend(trits::trials());
    trials.extend(levels::trials());
    trials.extend(synth::trials());
    trials.extend(tasks::trials());
    trials.extend(task_rules::trials());
    trials.extend(cli::trials());
    trials.extend(cli_bad_input::trials());
    trials.extend(cli_interrupt::trials());
    trials.extend(cli_pages::trials());
    trials.extend(cli_tasks::trials());
    trials.extend(cli_verify::trials());
    trials.extend(cli_pruning::trials());
    trials.extend(pruning::trials());
    trials.extend(scores::trials());
    trials.extend(tuning::trials());
    trials.extend(widths::trials());
    trials.extend(hostile_widths::trials());
    trials.extend(statistics::trials());
    trials.extend(comparison::trials());
    trials.extend(figures::trials());
    trials.extend(machine::plain_trials(formats::TESTS));
    trials.extend(machine::plain_trials(task_layouts::TESTS));
    trials.extend(machine::plain_trials(text::TESTS));
    trials.extend(machine::plain_trials(text_hostile::TESTS));
    libtest_mimic::run(&arguments, trials).exit();
}
