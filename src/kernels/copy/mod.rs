//! The same numbers in another place.

pub mod cast;
pub mod compact;
pub mod gather_rows;
pub mod pad;
pub mod planes;
pub mod scale_rows;
pub mod ternary;
pub mod transpose;
