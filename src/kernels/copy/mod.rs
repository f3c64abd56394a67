//! The same numbers in another place.

pub mod cast;
pub mod compact;
pub mod pad;
pub mod planes;
pub mod rows;
pub mod ternary;
pub mod transpose;
