//! Which scores stay: masks of 0 and 1, and the likeliest tokens.

pub mod threshold;
pub mod top_k;
pub mod top_tokens;
