//! How much a weight, a channel or a block of channels matters: sums of what single weights count, and what they need.

use crate::kernels::prelude::*;

pub mod blocks;
pub mod columns;
mod element;
pub mod fisher;
pub mod maxima;
pub mod rows;
pub mod sums;

/// What one weight w counts, from its gradient g and its place F on the diagonal of the Fisher matrix: how the loss changes
/// without it, to some order (Ma et al. 2023, LLM-Pruner, arXiv 2305.11627, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// |w|.
    L1,
    /// w².
    L2,
    /// |w g|: to first order.
    First,
    /// w² F: to second order, at a minimum.
    Second,
    /// |w g - w² F / 2|: both.
    Mixed,
    /// w g, with its sign: the vector form sums before it takes the magnitude, which is left to the caller.
    Product,
}

impl Form {
    /// All of them.
    pub const ALL: [Form; 6] =
        [Form::L1, Form::L2, Form::First, Form::Second, Form::Mixed, Form::Product];

    /// Whether it reads the gradient.
    pub fn needs_gradient(self) -> bool {
        matches!(self, Form::First | Form::Mixed | Form::Product)
    }

    /// Whether it reads the diagonal of the Fisher matrix.
    pub fn needs_fisher(self) -> bool {
        matches!(self, Form::Second | Form::Mixed)
    }

    fn variant(self) -> Variant {
        Variant {
            constants: match self {
                Form::L1 => &[("FORM", 0)],
                Form::L2 => &[("FORM", 1)],
                Form::First => &[("FORM", 2)],
                Form::Second => &[("FORM", 3)],
                Form::Mixed => &[("FORM", 4)],
                Form::Product => &[("FORM", 5)],
            },
            ..Variant::BASELINE
        }
    }

    fn of(variant: &Variant) -> Form {
        Form::ALL[variant.constant("FORM") as usize]
    }
}

/// How several scores become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
    /// The largest; NaN beside a NaN.
    Max,
    /// Their product.
    Product,
    /// The first of them.
    First,
    /// The last of them.
    Last,
}

impl Reduction {
    /// All of them.
    pub const ALL: [Reduction; 6] = [
        Reduction::Sum,
        Reduction::Mean,
        Reduction::Max,
        Reduction::Product,
        Reduction::First,
        Reduction::Last,
    ];

    fn variant(self) -> Variant {
        Variant {
            constants: match self {
                Reduction::Sum => &[("REDUCE", 0)],
                Reduction::Mean => &[("REDUCE", 1)],
                Reduction::Max => &[("REDUCE", 2)],
                Reduction::Product => &[("REDUCE", 3)],
                Reduction::First => &[("REDUCE", 4)],
                Reduction::Last => &[("REDUCE", 5)],
            },
            ..Variant::BASELINE
        }
    }

    fn of(variant: &Variant) -> Reduction {
        Reduction::ALL[variant.constant("REDUCE") as usize]
    }
}
