//! Training: what is learned, how a step changes it, and the loop that keeps the device busy.
//!
//! A [`Learner`] is a model on its device some of whose tensors are learned. What is learned in a tensor's place is a
//! [`Parameter`]'s to say: the tensor itself ([`dense`]), the scales of its groups ([`scales`]), numbers that are rounded on
//! their way into the model ([`rounded`]), scores of which weights stay ([`masked`]), how weights are rounded ([`rounding`]), or low-rank factors beside it ([`lora`]). The pass that makes gradients knows none of
//! this: it hands out each tensor's, and the parameter makes of it those of what is learned.
//!
//! Nothing waits for the device within a step. Loss and norm of a step are read when later ones are on their way.

pub mod blockwise;
mod course;
pub mod dense;
pub mod hidden;
mod learner;
pub mod lora;
pub mod masked;
mod optimizer;
mod parameter;
pub mod rounded;
pub mod rounding;
pub mod scales;
mod schedule;
mod settings;
pub mod stored_teacher;
mod teacher;

pub use course::{Aim, Course, Hidden, Look, Near, Record, Standing, Told};
pub use learner::{HeldOut, Learner, Outcome, Step, StepOptions, held_out, mean_loss};
pub use optimizer::{AdamW, Optimizer, StateBits};
pub use parameter::{Learned, Parameter};
pub use schedule::{Schedule, Shape};
pub use settings::{Rule, Settings};
pub use teacher::TeacherModel;
