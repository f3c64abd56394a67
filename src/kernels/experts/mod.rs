//! Mixtures of experts: which of several feed-forwards each token goes to, and their results brought together (Shazeer et al.
//! 2017, arXiv 1701.06538; Jiang et al. 2024, Mixtral, arXiv 2401.04088, section 2.1).

pub mod balance;
pub mod balance_grad;
pub mod choose;
pub mod combine;
pub mod combine_grad;
pub mod down;
pub mod gated;
pub mod product;
pub mod route;
pub mod route_grad;

use crate::kernels::prelude::*;

/// What one expert counts in the sum of a token's experts.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// Of every token and expert, f32 (tokens, experts): 0 where the token does not go to the expert.
    pub shares: &'a Tensor,
    /// The expert.
    pub expert: usize,
}

impl Share<'_> {
    /// How many experts there are.
    fn experts(self) -> usize {
        let shape = self.shares.shape();
        shape[shape.len() - 1]
    }
}

/// The product of two lines, summed in eight parts, as vectors have them.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Random shares of cases, (tokens, experts): some are 0.
fn random_shares(random: &mut Random, tokens: usize, experts: usize) -> Vec<f32> {
    let share = |_| match random.below(3) {
        0 => 0.0,
        _ => 0.5 + 0.5 * random.value(),
    };
    (0..tokens * experts).map(share).collect()
}

/// Random tokens of cases: `rows` of `tokens`, in order and none twice.
fn random_tokens(random: &mut Random, tokens: usize, rows: usize) -> Vec<u32> {
    let mut picked = Vec::with_capacity(rows);
    for token in 0..tokens {
        let left = (tokens - token) as u32;
        if random.below(left) < (rows - picked.len()) as u32 {
            picked.push(token as u32);
        }
    }
    picked
}
