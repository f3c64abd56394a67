//! The only place where two results are judged equal.
//!
//! The two sides have different types, so one result cannot be passed twice.

use rayon::prelude::*;

/// What the reference says: for each element a value and how far from it a correct device may be.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Values in f64.
    pub values: Vec<f64>,
    /// Absolute bounds, one per value. 0: the value must be exact.
    pub bounds: Vec<f64>,
}

impl Expected {
    /// Values that must be met exactly.
    pub fn exact(values: Vec<f64>) -> Self {
        let bounds = vec![0.0; values.len()];
        Self { values, bounds }
    }

    /// Replaces the elements from `start` on, each with its bound.
    pub fn put(&mut self, start: usize, line: impl IntoIterator<Item = (f64, f64)>) {
        for (index, (value, bound)) in line.into_iter().enumerate() {
            self.values[start + index] = value;
            self.bounds[start + index] = bound;
        }
    }

    /// Appends one element.
    pub fn push(&mut self, value: f64, bound: f64) {
        self.values.push(value);
        self.bounds.push(bound);
    }
}

/// What a device computed, widened to f64 without loss.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Values in f64.
    pub values: Vec<f64>,
}

/// How well two results agree.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Normalized mean squared error over the finite elements: sum((a-b)^2) / sum(b^2).
    pub nmse: f64,
    /// The largest error as a fraction of its bound; at most 1.
    pub worst: f64,
}

/// The worst element of two results that disagree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Index of the element.
    pub index: usize,
    /// The reference's value.
    pub expected: f64,
    /// The device's value.
    pub measured: f64,
    /// How far apart they may be.
    pub bound: f64,
    /// Elements that disagree.
    pub count: usize,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { index, expected, measured, bound, count } = self;
        let error = (measured - expected).abs();
        write!(
            f,
            "element {index}: expected {expected:e}, found {measured:e}, error {error:.3e} > {bound:.3e} ({count} elements differ)"
        )
    }
}

/// Judges a result. Infinities must match in sign; where the reference is NaN the device must be NaN too; NaN anywhere
/// else fails.
pub fn compare(expected: &Expected, measured: &Measured) -> Result<Agreement, Difference> {
    assert_eq!(expected.values.len(), measured.values.len(), "the two sides have one shape");
    assert_eq!(expected.values.len(), expected.bounds.len(), "every value has a bound");
    let chunks = expected.values.par_chunks(CHUNK).zip(expected.bounds.par_chunks(CHUNK));
    let judged: Vec<Tally> = chunks
        .zip(measured.values.par_chunks(CHUNK))
        .enumerate()
        .map(|(index, ((values, bounds), measured))| judge(index * CHUNK, values, bounds, measured))
        .collect();
    let mut all = Tally::default();
    for tally in judged {
        all.squares += tally.squares;
        all.total += tally.total;
        all.worst = all.worst.max(tally.worst);
        all.add(tally.difference);
    }
    match all.difference {
        Some((_, difference)) => Err(difference),
        None => Ok(Agreement {
            nmse: if all.total > 0.0 { all.squares / all.total } else { 0.0 },
            worst: all.worst,
        }),
    }
}

/// Elements that are judged at a time.
const CHUNK: usize = 1 << 16;

#[derive(Default)]
struct Tally {
    squares: f64,
    total: f64,
    worst: f64,
    difference: Option<(f64, Difference)>,
}

impl Tally {
    /// Keeps the worse of two differences and counts both.
    fn add(&mut self, other: Option<(f64, Difference)>) {
        let Some((severity, mut difference)) = other else {
            return;
        };
        difference.count += self.difference.map_or(0, |(_, known)| known.count);
        match &mut self.difference {
            Some((most, known)) if severity <= *most => known.count = difference.count,
            _ => self.difference = Some((severity, difference)),
        }
    }
}

fn judge(start: usize, values: &[f64], bounds: &[f64], measured: &[f64]) -> Tally {
    let mut tally = Tally::default();
    for (index, ((&want, &bound), &have)) in values.iter().zip(bounds).zip(measured).enumerate() {
        let error = (have - want).abs();
        let fits = if want.is_finite() {
            error <= bound
        } else {
            want == have || (want.is_nan() && have.is_nan())
        };
        if !fits {
            let severity = if (error / bound).is_nan() { f64::INFINITY } else { error / bound };
            let difference = Difference {
                index: start + index,
                expected: want,
                measured: have,
                bound,
                count: 1,
            };
            tally.add(Some((severity, difference)));
        } else if want.is_finite() {
            tally.squares += error * error;
            tally.total += want * want;
            tally.worst = tally.worst.max(if bound > 0.0 { error / bound } else { 0.0 });
        }
    }
    tally
}
