//! Kernels that do one thing only, to measure what a device can do: `bench hardware` times them, and the products are
//! judged against what they reach.

use crate::kernels::prelude::*;

pub mod coop;
pub mod copy;
pub mod dot4;
pub mod fma;
pub mod imad;
pub mod read;
pub mod shared;
pub mod write;

params! {
    /// Parameters of the bandwidth probes.
    struct Quads {
        quads: u32,
    }
}

params! {
    /// Parameters of the arithmetic probes.
    struct Steps {
        /// Of `probe/coop`: tiles.
        invocations: u32,
        steps: u32,
    }
}

params! {
    /// Parameters of the probe of workgroup memory.
    struct Rounds {
        groups: u32,
        rounds: u32,
    }
}

/// Random words.
fn words(count: usize) -> HostTensor {
    let mut random = Random::new(31);
    let words: Vec<u32> = (0..count).map(|_| random.below(u32::MAX)).collect();
    HostTensor::from_u32(&[count], &words)
}

/// A result of integers, to be written.
fn result(count: usize) -> HostTensor {
    HostTensor::zeros(DType::U32, &[count])
}
