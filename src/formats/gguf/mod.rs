//! x
mod value;
pub use value::{Array, Value};
