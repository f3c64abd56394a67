//! Trust: every kernel against its reference, mutants that the cases must notice, and a case as a page for other devices.

pub mod equivalent;
pub mod mutate;
pub mod page;
pub mod verify;
