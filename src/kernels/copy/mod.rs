//! The same numbers in another place.

pub mod pad;
