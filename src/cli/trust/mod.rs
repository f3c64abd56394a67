//! `lopper verify` and `lopper mutate`: whether the device computes what the reference says, and whether the cases would
//! notice if it did not.

mod list;
pub(super) mod mutate;
pub(super) mod verify;
