//! The only place where two results are judged equal.
//!
//! The two sides have different types, so one result cannot be passed twice.

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
        let Self {
            index,
            expected,
            measured,
            bound,
            count,
        } = self;
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
    assert_eq!(
        expected.values.len(),
        measured.values.len(),
        "the two sides have one shape"
    );
    assert_eq!(
        expected.values.len(),
        expected.bounds.len(),
        "every value has a bound"
    );
    let (mut squares, mut total, mut worst) = (0.0, 0.0, 0.0f64);
    let mut difference: Option<(f64, Difference)> = None;
    for (index, ((&want, &bound), &have)) in expected
        .values
        .iter()
        .zip(&expected.bounds)
        .zip(&measured.values)
        .enumerate()
    {
        let error = (have - want).abs();
        let fits = if want.is_finite() {
            error <= bound
        } else {
            want == have || (want.is_nan() && have.is_nan())
        };
        if fits {
            if want.is_finite() {
                squares += error * error;
                total += want * want;
                worst = worst.max(if bound > 0.0 { error / bound } else { 0.0 });
            }
            continue;
        }
        let severity = if (error / bound).is_nan() {
            f64::INFINITY
        } else {
            error / bound
        };
        let count = difference.map_or(0, |(_, d)| d.count) + 1;
        match &mut difference {
            Some((most, d)) if severity <= *most => d.count = count,
            _ => {
                difference = Some((
                    severity,
                    Difference {
                        index,
                        expected: want,
                        measured: have,
                        bound,
                        count,
                    },
                ))
            }
        }
    }
    match difference {
        Some((_, difference)) => Err(difference),
        None => Ok(Agreement {
            nmse: if total > 0.0 { squares / total } else { 0.0 },
            worst,
        }),
    }
}
