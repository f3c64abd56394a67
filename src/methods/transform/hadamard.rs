//! Rotations that spread what is in few channels over all of them: randomised Hadamard matrices (QuIP#, Tseng et al. 2024, arXiv
//! 2402.04396, section 3; QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 3.1).
//!
//! R = (H_t x Q_m) D of a width t m: D has random signs on its diagonal, H_t is Sylvester's matrix of the largest power of two t that
//! leaves what Q_m needs. Q_m is, for the odd part o of the width,
//!
//! - nothing (m = 1), where o is 1;
//! - Paley's Hadamard matrix of m = 4 o, where the width is a multiple of that and there is one: 4 o - 1 is prime (his first
//!   construction) or 2 o - 1 is a prime that leaves 1 by 4 (his second). So 12, 20, 28, 36, 44, 60, and widths of 576, 896, 1536,
//!   2560, 3072, 3584 or 5120;
//! - else a random orthogonal matrix of m = o, whose entries are not of one size.
//!
//! A product with R takes n (log t + m) operations for n numbers, in f64.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::Random;

/// What a rotation of a width is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The order of Sylvester's matrix.
    pub sylvester: usize,
    /// That of the other one, 1 for none.
    pub rest: usize,
    /// Whether that one is Hadamard's too, and not drawn.
    pub paley: bool,
}

impl Parts {
    /// Those of a width.
    pub fn of(width: usize) -> Self {
        let odd = width.max(1) >> width.max(1).trailing_zeros();
        if odd > 1 && width.is_multiple_of(4 * odd) && paley_order(odd).is_some() {
            return Self { sylvester: width / (4 * odd), rest: 4 * odd, paley: true };
        }
        Self { sylvester: width / odd, rest: odd, paley: odd == 1 }
    }

    /// In words.
    pub fn words(self) -> String {
        match self {
            Self { sylvester, rest: 1, .. } => format!("Hadamard {sylvester}"),
            Self { sylvester: 1, rest, paley: true } => format!("Hadamard {rest}"),
            Self { sylvester, rest, paley: true } => format!("Hadamard {sylvester} x {rest}"),
            Self { sylvester: 1, rest, .. } => format!("random orthogonal {rest}"),
            Self { sylvester, rest, .. } => {
                format!("Hadamard {sylvester} x random orthogonal {rest}")
            }
        }
    }
}

/// An orthogonal matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    parts: Parts,
    signs: Vec<f64>,
    /// Q_m, row by row.
    rest: Vec<f64>,
}

impl Rotation {
    /// One of this width, drawn by a seed.
    pub fn random(width: usize, seed: u64) -> Self {
        let (parts, mut random) = (Parts::of(width), Random::new(seed));
        let signs = (0..width).map(|_| if random.word() >> 31 == 0 { 1.0 } else { -1.0 }).collect();
        let rest = match parts {
            Parts { rest: 1, .. } => vec![1.0],
            Parts { rest, paley: true, .. } => paley(rest / 4),
            Parts { rest, .. } => orthogonal(rest, &mut random),
        };
        Self { parts, signs, rest }
    }

    /// What it is made of.
    pub fn parts(&self) -> Parts {
        self.parts
    }

    /// Its rows and columns.
    pub fn width(&self) -> usize {
        self.signs.len()
    }

    /// R v in the place of v.
    pub fn apply(&self, v: &mut [f64]) {
        assert_eq!(v.len(), self.width(), "a vector of the rotation's width");
        v.iter_mut().zip(&self.signs).for_each(|(value, sign)| *value *= sign);
        let (t, m) = (self.parts.sylvester, self.parts.rest);
        if m > 1 {
            let mut turned = vec![0.0; m];
            for part in v.chunks_exact_mut(m) {
                for (value, row) in turned.iter_mut().zip(self.rest.chunks_exact(m)) {
                    *value = row.iter().zip(&*part).map(|(a, b)| a * b).sum();
                }
                part.copy_from_slice(&turned);
            }
        }
        let mut half = 1;
        while half < t {
            for pair in v.chunks_exact_mut(2 * half * m) {
                let (low, high) = pair.split_at_mut(half * m);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        let factor = 1.0 / (t as f64).sqrt();
        v.iter_mut().for_each(|value| *value *= factor);
    }

    /// R v in the place of each of many v, rounded to f32 once.
    pub fn apply_each(&self, values: &mut [f32]) {
        values.par_chunks_exact_mut(self.width().max(1)).for_each_init(
            || vec![0.0; self.width()],
            |v, part| {
                v.iter_mut().zip(&*part).for_each(|(v, value)| *v = f64::from(*value));
                self.apply(v);
                part.iter_mut().zip(v).for_each(|(value, v)| *value = *v as f32);
            },
        );
    }

    /// The matrix, row by row, in f32.
    pub fn rows(&self) -> Vec<f32> {
        let n = self.width();
        let mut rows = vec![0.0; n * n];
        let mut column = vec![0.0; n];
        for at in 0..n {
            column.fill(0.0);
            column[at] = 1.0;
            self.apply(&mut column);
            for (row, value) in column.iter().enumerate() {
                rows[row * n + at] = *value as f32;
            }
        }
        rows
    }
}

/// The prime of Paley's matrix of order 4 o, and whether it is of his first construction.
fn paley_order(odd: usize) -> Option<(usize, bool)> {
    let prime = |n: usize| n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    let (first, second) = (4 * odd - 1, 2 * odd - 1);
    match () {
        () if prime(first) => Some((first, true)),
        () if prime(second) && second % 4 == 1 => Some((second, false)),
        () => None,
    }
}

/// Paley's matrix of order 4 o over the root of that (Paley 1933, On orthogonal matrices): I + S of order q + 1, or with every
/// entry of a symmetric S four times and 2 (q + 1). S has a row and a column of ones, of the sign that makes it skew in the first
/// case, around the quadratic characters of differences.
fn paley(odd: usize) -> Vec<f64> {
    let (q, first) = paley_order(odd).expect("parts have such a matrix where there is one");
    let mut square = vec![false; q];
    (1..q).for_each(|x| square[x * x % q] = true);
    let s = |i: usize, j: usize| -> f64 {
        let sign = |is: bool| if is { 1.0 } else { -1.0 };
        match (i, j) {
            _ if i == j => 0.0,
            (0, _) => 1.0,
            (_, 0) => sign(!first),
            _ => sign(square[(i + q - j) % q]),
        }
    };
    let one = |i: usize, j: usize| f64::from(u8::from(i == j));
    let order = 4 * odd;
    let entry = |at: usize| -> f64 {
        let (i, j) = (at / order, at % order);
        if first {
            return one(i, j) + s(i, j);
        }
        let (of_s, of_one) = match (i % 2, j % 2) {
            (0, 0) => (1.0, 1.0),
            (1, 1) => (-1.0, -1.0),
            _ => (1.0, -1.0),
        };
        of_s * s(i / 2, j / 2) + of_one * one(i / 2, j / 2)
    };
    let factor = 1.0 / (order as f64).sqrt();
    (0..order * order).map(|at| factor * entry(at)).collect()
}

/// A random orthogonal matrix: rows of normal numbers, each made orthogonal to those before it, twice for the sake of rounding.
fn orthogonal(n: usize, random: &mut Random) -> Vec<f64> {
    let mut rows: Vec<f64> = Vec::with_capacity(n * n);
    while rows.len() < n * n {
        let mut row: Vec<f64> = (0..n).map(|_| f64::from(random.normal())).collect();
        for _ in 0..2 {
            for before in rows.chunks_exact(n) {
                let along: f64 = before.iter().zip(&row).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(before).for_each(|(value, before)| *value -= along * before);
            }
        }
        let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        // One that those before it span is drawn again.
        if length > 1e-6 {
            rows.extend(row.iter().map(|value| value / length));
        }
    }
    rows
}
