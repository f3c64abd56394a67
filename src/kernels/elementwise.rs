//! What elementwise kernels share: 128 invocations of four elements each, bound by what they read and write.

use super::prelude::*;

/// A row's workgroups: four elements of the first binding to each invocation.
pub(super) const BASE: Kernel = Kernel {
    overrides: &[("WORKGROUP", 128.0)],
    groups: |args| fold(args.tensors[0].len().div_ceil(4 * 128)),
    ..Kernel::BASE
};

/// Cost of so many operations an element, where every binding is read or written once and the last `updated` are both.
pub(super) fn cost(args: &Args<'_>, operations: f64, updated: usize) -> Cost {
    let elements = args.tensors[0].len() as f64;
    let sizes = args.tensors.iter().map(|tensor| tensor.dtype.size());
    let again = args.tensors.iter().rev().take(updated);
    let bytes = sizes.chain(again.map(|tensor| tensor.dtype.size())).sum::<usize>();
    Cost::new(operations * elements, bytes as f64 * elements)
}

/// Variants of activations and results that a model asks for.
pub(super) fn variants() -> Vec<Variant> {
    let pairs = [(DType::F32, DType::F32), (DType::F32, DType::F16), (DType::F16, DType::F16)];
    pairs.map(|(from, to)| Variant::typed(from, to)).to_vec()
}

/// A random number of elements.
pub(super) fn count(sizes: &Sizes) -> usize {
    sizes.between(0, 1, 70) * sizes.between(1, 1, 70)
}
