//! The same numbers in another place.

pub mod pad;
pub mod transpose;
