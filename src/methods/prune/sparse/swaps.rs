//! SparseSwaps (arXiv 2512.10922): a mask is improved row by row. Of all pairs of a weight that stays and one that goes, the pair
//! whose exchange lowers the row's error most is exchanged, until none lowers it.
//!
//! With d the part of the row that goes and g = G d, losing i and taking j back changes d^T G d by
//! 2 w_i g_i + w_i^2 G_ii - 2 w_j g_j + w_j^2 G_jj - 2 w_i w_j G_ij. That is a_i + b_j less a product, which is at most
//! 2 r_i s_i s_j, s = |w| sqrt(G_ii), r_i the largest correlation of input i with another one. So pairs are looked at in rising
//! order of what they may come to, and left out where that is no better than the best pair yet: the search is exact, and most
//! pairs are never looked at. An exchange costs O(n log n) beside the pairs that are looked at; all of them would be n^2 / 4.

use rayon::prelude::*;

use super::Pattern;

/// Improves a mask in place, with at most `most` exchanges in a row. `pattern`: within which each exchange must stay
/// ([`Pattern::Groups`]; else a row). Returns the exchanges that were made.
pub fn improve(
    weights: &[f32],
    columns: usize,
    gram: &[f64],
    pattern: Pattern,
    most: usize,
    kept: &mut [bool],
) -> usize {
    let n = columns.max(1);
    let rows = weights.par_chunks(n).zip(kept.par_chunks_mut(n));
    if let Pattern::Groups { of, .. } = pattern {
        return rows.map(|(row, kept)| row_in_groups(row, gram, of, most, kept)).sum();
    }
    let correlations = correlations(gram, n);
    rows.map(|(row, kept)| row_in_whole(row, gram, &correlations, most, kept)).sum()
}

/// Of each input the largest magnitude of its correlation with another one.
fn correlations(gram: &[f64], n: usize) -> Vec<f64> {
    let inverse = |i: usize| match gram[i * (n + 1)] {
        own if own > 0.0 => 1.0 / own.sqrt(),
        _ => 0.0,
    };
    let inverses: Vec<f64> = (0..n).map(inverse).collect();
    let largest = |(i, line): (usize, &[f64])| {
        let others = line.iter().zip(&inverses).enumerate().filter(|(j, _)| *j != i);
        let largest = others.map(|(_, (g, inverse))| (g * inverse).abs()).fold(0.0, f64::max);
        largest * inverses[i]
    };
    gram.par_chunks(n).enumerate().map(largest).collect()
}

/// A row while it is improved.
struct State<'a> {
    w: Vec<f64>,
    gram: &'a [f64],
    /// G d.
    g: Vec<f64>,
    /// d^T G d.
    error: f64,
}

/// What an exchange must gain, as a share of the row's error, to count as one: sums of f64 are good to less.
const LEAST_GAIN: f64 = 1e-9;

impl<'a> State<'a> {
    fn new(row: &[f32], gram: &'a [f64], kept: &[bool]) -> Self {
        let n = row.len();
        let w: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
        let mut state = Self { w, gram, g: vec![0.0; n], error: 0.0 };
        for j in (0..n).filter(|j| !kept[*j]) {
            state.add(j, state.w[j]);
        }
        let gone = (0..n).filter(|j| !kept[*j]);
        state.error = gone.map(|j| state.w[j] * state.g[j]).sum();
        state
    }

    fn add(&mut self, column: usize, factor: f64) {
        let line = &self.gram[column * self.w.len()..][..self.w.len()];
        for (g, line) in self.g.iter_mut().zip(line) {
            *g += factor * line;
        }
    }

    /// a_i and s_i of a weight that stays.
    fn loss(&self, i: usize) -> (f64, f64) {
        let (w, own) = (self.w[i], self.gram[i * (self.w.len() + 1)]);
        (2.0 * w * self.g[i] + w * w * own, w.abs() * own.max(0.0).sqrt())
    }

    /// b_j and s_j of one that goes.
    fn gain(&self, j: usize) -> (f64, f64) {
        let (w, own) = (self.w[j], self.gram[j * (self.w.len() + 1)]);
        (w * w * own - 2.0 * w * self.g[j], w.abs() * own.max(0.0).sqrt())
    }

    /// Loses i and takes j back.
    fn exchange(&mut self, (i, j, change): (usize, usize, f64), kept: &mut [bool]) {
        (kept[i], kept[j]) = (false, true);
        self.add(i, self.w[i]);
        self.add(j, -self.w[j]);
        self.error += change;
    }

    fn worth(&self, change: f64) -> bool {
        change < -LEAST_GAIN * self.error.abs()
    }
}

/// A weight of a row in a search: what it adds to a change, s (for one that stays 2 r s), its column, and the least that a pair with
/// it may come to, without the other's part.
#[derive(Clone, Copy)]
struct Entry {
    change: f64,
    size: f64,
    column: usize,
    least: f64,
}

fn row_in_whole(
    row: &[f32],
    gram: &[f64],
    correlations: &[f64],
    most: usize,
    kept: &mut [bool],
) -> usize {
    let n = row.len();
    let mut state = State::new(row, gram, kept);
    let (mut stay, mut gone) = (Vec::with_capacity(n), Vec::with_capacity(n));
    // Of the weights from a place of `gone` on, the largest s.
    let mut largest = Vec::with_capacity(n);
    let rising = |a: &Entry, b: &Entry| a.least.total_cmp(&b.least).then(a.column.cmp(&b.column));
    for done in 0..most {
        gone.clear();
        for column in (0..n).filter(|c| !kept[*c]) {
            let (change, size) = state.gain(column);
            gone.push(Entry { change, size, column, least: change });
        }
        gone.sort_unstable_by(rising);
        let Some(&Entry { change: first, .. }) = gone.first() else { return done };
        largest.clear();
        largest.resize(gone.len(), 0.0);
        let mut any = 0f64;
        for (place, entry) in gone.iter().enumerate().rev() {
            any = any.max(entry.size);
            largest[place] = any;
        }
        stay.clear();
        for column in (0..n).filter(|c| kept[*c]) {
            let (change, size) = state.loss(column);
            let size = 2.0 * correlations[column] * size;
            let least = change - size * any;
            if least + first < 0.0 {
                stay.push(Entry { change, size, column, least });
            }
        }
        stay.sort_unstable_by(rising);
        let (mut best, mut limit) = (None, 0.0);
        for own in &stay {
            if own.least + first >= limit {
                break;
            }
            let line = &gram[own.column * n..(own.column + 1) * n];
            let twice = 2.0 * state.w[own.column];
            for (other, behind) in gone.iter().zip(&largest) {
                let sum = own.change + other.change;
                if sum - own.size * behind >= limit {
                    break;
                }
                let change = sum - twice * state.w[other.column] * line[other.column];
                if change < limit {
                    (limit, best) = (change, Some((own.column, other.column, change)));
                }
            }
        }
        match best {
            Some(pair) if state.worth(pair.2) => state.exchange(pair, kept),
            _ => return done,
        }
    }
    most
}

fn row_in_groups(row: &[f32], gram: &[f64], of: usize, most: usize, kept: &mut [bool]) -> usize {
    let n = row.len();
    let mut state = State::new(row, gram, kept);
    for done in 0..most {
        let mut best: Option<(usize, usize, f64)> = None;
        for start in (0..n).step_by(of) {
            let group = start..(start + of).min(n);
            for i in group.clone().filter(|i| kept[*i]) {
                let (a, _) = state.loss(i);
                for j in group.clone().filter(|j| !kept[*j]) {
                    let product = 2.0 * state.w[i] * state.w[j] * gram[i * n + j];
                    let change = a + state.gain(j).0 - product;
                    if best.is_none_or(|(.., least)| change < least) {
                        best = Some((i, j, change));
                    }
                }
            }
        }
        match best {
            Some(pair) if state.worth(pair.2) => state.exchange(pair, kept),
            _ => return done,
        }
    }
    most
}
