//! Codebooks learned from weights: the entries that lose least of what the weights are as shares of their group's largest magnitude, by weighted
//! k-means in one dimension, which has an exact solution (Wang and Song 2011, Ckmeans.1d.dp; section 2.2). The outer entries stay -1 and 1, where the
//! largest of each group stands.

use rayon::prelude::*;

use crate::tensor::WHOLE_ROW;

/// Places from -1 to 1 at which values are summed up.
const PLACES: usize = 4096;

/// Values from -1 to 1, each with a weight, summed up at places of equal distance.
#[derive(Clone, Debug)]
pub struct Spread {
    places: Vec<Sums>,
}

/// Of the values of a place: their weights, those times the values, and times the squares.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    weight: f64,
    first: f64,
    second: f64,
}

impl Sums {
    fn plus(self, other: Self) -> Self {
        Self {
            weight: self.weight + other.weight,
            first: self.first + other.first,
            second: self.second + other.second,
        }
    }

    fn less(self, other: Self) -> Self {
        Self {
            weight: self.weight - other.weight,
            first: self.first - other.first,
            second: self.second - other.second,
        }
    }

    /// The squared error if all of them become `entry`.
    fn loss(self, entry: f64) -> f64 {
        (self.second - 2.0 * entry * self.first + entry * entry * self.weight).max(0.0)
    }
}

impl Default for Spread {
    fn default() -> Self {
        Self { places: vec![Sums::default(); PLACES] }
    }
}

impl Spread {
    /// Takes the values of a matrix of so many columns, in groups of `group_size` ([`WHOLE_ROW`]: a row). A value's error counts as the square of
    /// what its group is scaled by, times that of its column, `squares` (columns), if they are given.
    pub fn add(
        &mut self,
        values: &[f32],
        columns: usize,
        group_size: u32,
        squares: Option<&[f32]>,
    ) {
        let group = if group_size == WHOLE_ROW { columns } else { group_size as usize };
        let of_rows = |rows: &[f32]| {
            let mut own = Self::default();
            for line in rows.chunks_exact(columns) {
                for (index, values) in line.chunks(group).enumerate() {
                    own.add_group(values, squares.map(|squares| &squares[index * group..]));
                }
            }
            own
        };
        // Added up in order, so that the sums are the same in every run.
        let parts: Vec<Self> = values.par_chunks(256 * columns).map(of_rows).collect();
        for part in parts {
            for (sums, more) in self.places.iter_mut().zip(part.places) {
                *sums = sums.plus(more);
            }
        }
    }

    fn add_group(&mut self, values: &[f32], squares: Option<&[f32]>) {
        let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        if largest == 0.0 || !largest.is_finite() {
            return;
        }
        let scale = f64::from(largest);
        for (column, value) in values.iter().enumerate() {
            let share = f64::from(*value) / scale;
            let weight = scale * scale * squares.map_or(1.0, |squares| f64::from(squares[column]));
            let place = ((share + 1.0) / 2.0 * (PLACES - 1) as f64).round() as usize;
            let sums = &mut self.places[place.min(PLACES - 1)];
            let own = Sums { weight, first: weight * share, second: weight * share * share };
            *sums = sums.plus(own);
        }
    }

    /// Whether no value was taken.
    pub fn is_empty(&self) -> bool {
        self.places.iter().all(|sums| sums.weight == 0.0)
    }

    /// The share of the values' squares that is lost if each becomes the nearest of some entries in rising order.
    pub fn loss(&self, entries: &[f32]) -> f64 {
        let (mut lost, mut all) = (0.0, 0.0);
        for sums in self.places.iter().filter(|sums| sums.weight > 0.0) {
            let mean = sums.first / sums.weight;
            let above = entries.partition_point(|entry| f64::from(*entry) < mean);
            let near = [above.saturating_sub(1), above.min(entries.len() - 1)];
            let loss = near.map(|place| sums.loss(f64::from(entries[place])));
            lost += loss[0].min(loss[1]);
            all += sums.second;
        }
        if all > 0.0 { lost / all } else { 0.0 }
    }

    /// The `count` entries (2 to 256), from -1 to 1 in rising order, for which the squared error is least: by dynamic programming over the places,
    /// whose best last cut rises with the place, so that each row of the table takes n log n.
    pub fn entries(&self, count: usize) -> Vec<f32> {
        assert!((2..=256).contains(&count), "a codebook of {count} entries");
        let mut before = vec![Sums::default()];
        for sums in &self.places {
            let last = before[before.len() - 1];
            before.push(last.plus(*sums));
        }
        let part = |from: usize, to: usize| before[to].less(before[from]);
        // The least loss of the places before each, in clusters so far; and where the last of them begins.
        let mut best: Vec<f64> = (0..=PLACES).map(|to| part(0, to).loss(-1.0)).collect();
        let mut begins: Vec<Vec<u16>> = Vec::new();
        for cluster in 1..count {
            let last = cluster + 1 == count;
            let loss = |from: usize, to: usize| {
                let sums = part(from, to);
                match last {
                    true => sums.loss(1.0),
                    false if sums.weight > 0.0 => sums.loss(sums.first / sums.weight),
                    false => 0.0,
                }
            };
            let mut next = vec![f64::INFINITY; PLACES + 1];
            let mut from = vec![0u16; PLACES + 1];
            // Ranges of ends, with those of where their last cluster may begin.
            let mut open = vec![(cluster + 1, PLACES, cluster, PLACES - 1)];
            while let Some((low, high, least, most)) = open.pop() {
                if low > high {
                    continue;
                }
                let middle = (low + high) / 2;
                let mut found = (f64::INFINITY, least);
                let candidates = best.iter().enumerate().take(most.min(middle - 1) + 1);
                for (begin, before) in candidates.skip(least) {
                    let total = before + loss(begin, middle);
                    if total < found.0 {
                        found = (total, begin);
                    }
                }
                (next[middle], from[middle]) = (found.0, found.1 as u16);
                open.push((low, middle - 1, least, found.1));
                open.push((middle + 1, high, found.1, most));
            }
            best = next;
            begins.push(from);
        }
        let mut entries = vec![1.0f32];
        let mut end = PLACES;
        for from in begins.iter().rev() {
            let begin = usize::from(from[end]);
            if end < PLACES {
                let sums = part(begin, end);
                let middle = (begin + end - 1) as f64 / (PLACES - 1) as f64 - 1.0;
                let mean = if sums.weight > 0.0 { sums.first / sums.weight } else { middle };
                entries.push(mean as f32);
            }
            end = begin;
        }
        entries.push(-1.0);
        entries.reverse();
        entries
    }
}
