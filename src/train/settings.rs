//! How long, how fast and on how much a training goes: recipe keys, and flags of commands.

use serde::{Deserialize, Serialize};

use super::optimizer::{AdamW, StateBits};
use super::schedule::{Schedule, Shape};
use crate::methods::BadField;

/// How gradients change what is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// AdamW
    #[default]
    Adamw,
    /// By the rate against each gradient's sign
    Sign,
}

/// How long, how fast and on how much a training goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Settings {
    /// Train for so many steps [default: an epoch]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Train on so many tokens instead
    #[arg(long, conflicts_with = "steps")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Train for so many passes over the data instead
    #[arg(long, conflicts_with_all = ["steps", "tokens"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Rows of a step
    #[arg(long, default_value_t = Self::default().batch)]
    pub batch: usize,
    /// Tokens that go through a layer at once, a row at least: memory against speed [default: 8192]
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// The highest learning rate [default: what is usual for the method]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// How gradients change what is learned [default: adamw; of rounding sign]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<Rule>,
    /// How the rate falls [default: cosine; by sign linear]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Shape>,
    /// Steps in which it rises at first [default: 3 % of all; by sign 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<u64>,
    /// What is left of the rate at the end [default: 0.1; by sign 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_rate: Option<f64>,
    /// Weight decay of matrices; norms, biases and scales have none
    #[arg(long, default_value_t = Self::default().decay)]
    pub decay: f64,
    /// What AdamW keeps of the mean of gradients
    #[arg(long, default_value_t = Self::default().beta1)]
    pub beta1: f64,
    /// What it keeps of the mean of their squares
    #[arg(long, default_value_t = Self::default().beta2)]
    pub beta2: f64,
    /// Added to the root of that
    #[arg(long, default_value_t = Self::default().epsilon)]
    pub epsilon: f64,
    /// The norm that all gradients together have at most; 0: any
    #[arg(long, default_value_t = Self::default().clip)]
    pub clip: f64,
    /// Add so many times the load-balancing loss of experts [default: the model's router_aux_loss_coef]
    #[arg(long, value_name = "WEIGHT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance: Option<f64>,
    /// Bits of the optimizer's state: 32 or 8
    #[arg(long, value_name = "BITS", default_value_t = Self::default().optimizer_bits)]
    pub optimizer_bits: u32,
    /// Steps between two looks at what is held out [default: a tenth of all]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluate_every: Option<u64>,
    /// Stop when so many looks in a row brought nothing better, and take the best
    #[arg(long, value_name = "LOOKS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// Steps between two checkpoints
    #[arg(long, default_value_t = Self::default().checkpoint_every)]
    pub checkpoint_every: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            steps: None,
            tokens: None,
            epochs: None,
            batch: 8,
            micro_batch: None,
            rate: None,
            optimizer: None,
            schedule: None,
            warmup: None,
            final_rate: None,
            decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip: 1.0,
            balance: None,
            optimizer_bits: 32,
            evaluate_every: None,
            patience: None,
            checkpoint_every: 200,
        }
    }
}

/// No training has more steps or tokens.
const MOST: u64 = 1 << 48;
/// No step has more rows.
const MOST_ROWS: u64 = 1 << 24;

impl Settings {
    /// An error if a number has no sense.
    pub fn check(&self) -> Result<(), BadField> {
        let given = [
            self.steps.map(|_| "steps"),
            self.tokens.map(|_| "tokens"),
            self.epochs.map(|_| "epochs"),
        ];
        let given: Vec<_> = given.into_iter().flatten().collect();
        if given.len() > 1 {
            return Err(BadField::new(
                "steps",
                "one of steps, tokens and epochs",
                given.join(", "),
            ));
        }
        let least = [
            ("steps", self.steps.unwrap_or(1)),
            ("tokens", self.tokens.unwrap_or(1)),
            ("batch", self.batch as u64),
            ("micro_batch", self.micro_batch.unwrap_or(1) as u64),
            ("evaluate_every", self.evaluate_every.unwrap_or(1)),
            ("patience", self.patience.unwrap_or(1) as u64),
            ("checkpoint_every", self.checkpoint_every),
        ];
        let most = [("steps", self.steps), ("tokens", self.tokens), ("warmup", self.warmup)];
        for (field, value) in most {
            if let Some(value) = value.filter(|value| *value > MOST) {
                return Err(BadField::new(field, format!("at most {MOST}"), value));
            }
        }
        if self.batch as u64 > MOST_ROWS {
            return Err(BadField::new("batch", format!("at most {MOST_ROWS}"), self.batch));
        }
        for (field, value) in least {
            if value == 0 {
                return Err(BadField::new(field, "1 or more", value));
            }
        }
        let above = [
            ("rate", self.rate.unwrap_or(1.0)),
            ("epochs", self.epochs.unwrap_or(1.0)),
            ("epsilon", self.epsilon),
        ];
        for (field, value) in above {
            // Devices compute in f32.
            if !(value > 0.0
                && value.is_finite()
                && (field == "epochs" || (value as f32).is_normal()))
            {
                return Err(BadField::new(field, "a number above 0 that f32 holds", value));
            }
        }
        if self.clip > 0.0 && !(self.clip as f32).is_normal() {
            return Err(BadField::new("clip", "0, or a number that f32 holds", self.clip));
        }
        let balance = ("balance", self.balance.unwrap_or(0.0));
        for (field, value) in [("decay", self.decay), ("clip", self.clip), balance] {
            if !(value >= 0.0 && (value as f32).is_finite()) {
                return Err(BadField::new(field, "0 or more", value));
            }
        }
        for (field, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(value >= 0.0 && (value as f32) < 1.0) {
                return Err(BadField::new(field, "0 to less than 1", value));
            }
        }
        if ![8, 32].contains(&self.optimizer_bits) {
            return Err(BadField::new("optimizer_bits", "8 or 32", self.optimizer_bits));
        }
        if let Some(rate) = self.final_rate.filter(|rate| !(0.0..=1.0).contains(rate)) {
            return Err(BadField::new("final_rate", "0 to 1", rate));
        }
        Ok(())
    }

    /// Steps in all, with so many rows and tokens in an epoch.
    pub fn all_steps(&self, rows: usize, length: usize) -> u64 {
        let batch = self.batch as u64;
        if let Some(steps) = self.steps {
            return steps;
        }
        if let Some(tokens) = self.tokens {
            return tokens.div_ceil(batch.saturating_mul(length as u64).max(1));
        }
        let rows = rows as f64 * self.epochs.unwrap_or(1.0);
        ((rows / batch as f64).ceil() as u64).clamp(1, MOST)
    }

    fn by_sign(&self) -> bool {
        self.optimizer == Some(Rule::Sign)
    }

    /// The rate over so many steps, `usual` where none is asked for: of steps by sign that of all of them together.
    pub fn schedule(&self, steps: u64, usual: f64) -> Schedule {
        let (shape, floor, warmup, usual) = match self.by_sign() {
            true => (Shape::Linear, 0.0, 0, usual / steps.max(1) as f64),
            false => (Shape::Cosine, 0.1, steps / 100 * 3 + steps % 100 * 3 / 100, usual),
        };
        Schedule {
            shape: self.schedule.unwrap_or(shape),
            peak: self.rate.unwrap_or(usual),
            floor: self.final_rate.unwrap_or(floor),
            warmup: self.warmup.unwrap_or(warmup).min(steps),
            steps,
        }
    }

    /// The optimizer's numbers.
    pub fn optimizer(&self) -> AdamW {
        AdamW {
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            decay: self.decay,
            max_norm: (self.clip > 0.0).then_some(self.clip),
            state: if self.optimizer_bits == 8 { StateBits::Eight } else { StateBits::ThirtyTwo },
            by_sign: self.by_sign(),
        }
    }

    /// Tokens that go through a layer at once. It decides how gradients are summed, and so does not depend on the device.
    pub fn tokens_at_once(&self) -> usize {
        self.micro_batch.unwrap_or(8192)
    }
}
