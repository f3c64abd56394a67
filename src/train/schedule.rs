//! The learning rate of each step.

use serde::{Deserialize, Serialize};

/// How the rate falls once it is warm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Half a period of a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5)
    #[default]
    Cosine,
    /// Evenly
    Linear,
    /// Not at all
    Constant,
}

/// A learning rate over the steps of a training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// How it falls.
    pub shape: Shape,
    /// The highest rate.
    pub peak: f64,
    /// What is left at the end, of the highest.
    pub floor: f64,
    /// Steps in which it rises evenly to the highest.
    pub warmup: u64,
    /// All steps.
    pub steps: u64,
}

impl Schedule {
    /// The rate of a step, counted from 0. The first step of a warm-up is not one of rate 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step as f64 + 1.0) / (self.warmup as f64 + 1.0);
        }
        let falling = self.steps.saturating_sub(self.warmup).max(1);
        let done = ((step - self.warmup) as f64 / falling as f64).min(1.0);
        let left = match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => 1.0 - done,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        self.peak * (self.floor + (1.0 - self.floor) * left)
    }
}
