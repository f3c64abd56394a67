//! What every kernel's file uses.

pub(super) use rayon::prelude::*;

pub(super) use super::bounds::{U, gamma, storing};
pub(super) use crate::compare::Expected;
pub(super) use crate::device::{
    Args, Binding, Case, CaseData, CaseOf, Device, Element, HostTensor, Kernel, Outputs, Poison,
    Random, Sizes, Tensor, Variant, binding, fold, params,
};
pub(super) use crate::error::Result;
pub(super) use crate::gpu::{Access, Cost};
pub(super) use crate::tensor::DType;
