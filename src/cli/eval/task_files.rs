//! The files that the answers to tasks go to.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cli::Global;
use crate::cli::output::{Output, marked};
use crate::disk::{claim, write_own, written_by};
use crate::error::{Error, Result};
use crate::measure::quality::harness::{Origin, results, samples};
use crate::measure::quality::outcome::TaskOutcome;

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct TaskFiles {
    /// Write the tasks' results as lm-evaluation-harness does
    #[arg(long, value_name = "FILE")]
    lm_eval: Option<PathBuf>,
    /// Write what came of each item, a line of JSON each; `compare` reads it again in place of a model
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
}

impl TaskFiles {
    /// An error now, and not after the work, if one of them cannot be made, or there will be no answers for it.
    pub(super) fn check(&self, answers: bool, output: &Output) -> Result<()> {
        if !answers && (self.lm_eval.is_some() || self.samples.is_some()) {
            return Err(Error::Argument {
                argument: "--lm-eval / --samples".into(),
                expected: "answers to tasks: --task, or a .jsonl file in place of each model"
                    .into(),
                found: "none".into(),
            });
        }
        let mut paths = self.lm_eval.iter().chain(&self.samples);
        paths.try_for_each(|path| claim(path, output.force()))
    }

    /// Writes what is asked for of a model's outcomes.
    pub(super) fn write(
        &self,
        global: &Global,
        model: &str,
        outcomes: &[TaskOutcome],
    ) -> Result<()> {
        if let Some(path) = &self.samples {
            let mut lines = samples(outcomes);
            if lines.starts_with('{') {
                lines.insert_str(1, &format!("\"written_by\":\"{}\",", written_by()));
            }
            write_own(path, lines.as_bytes())?;
        }
        if let Some(path) = &self.lm_eval {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let origin = Origin {
                model: model.into(),
                date: since.map_or(0.0, |time| time.as_secs_f64()),
                seed: global.seed.unwrap_or(0),
            };
            let results = marked(&results(outcomes, &origin));
            write_own(path, format!("{results:#}\n").as_bytes())?;
        }
        Ok(())
    }
}
