//! Numbers beside known ones: files of tensors from outside, and how close a result must come.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::formats::Source;
use lopper::formats::safetensors::Safetensors;

/// A file of tensors of four bytes an element.
pub struct Known(Safetensors);

impl Known {
    pub fn open(path: &str) -> Result<Self, Failed> {
        Ok(Self(Safetensors::open(Source::open(Path::new(path))?)?))
    }

    pub fn shape(&self, name: &str) -> Result<Vec<usize>, Failed> {
        Ok(self.0.get(name).ok_or(format!("no {name}"))?.shape)
    }

    /// The elements as integers; of 64 bits, their lower halves.
    pub fn words(&self, name: &str) -> Result<Vec<u32>, Failed> {
        let tensor = self.0.get(name).ok_or(format!("no {name}"))?;
        let bytes = tensor.bytes()?;
        let width = bytes.len() / tensor.shape.iter().product::<usize>();
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(bytes.chunks_exact(width).map(word).collect())
    }

    pub fn floats(&self, name: &str) -> Result<Vec<f32>, Failed> {
        let words = self.words(name)?;
        Ok(words.into_iter().map(f32::from_bits).collect())
    }

    /// Every name but that of the tokens.
    pub fn names(&self) -> Vec<String> {
        let names = self.0.names().map(String::from);
        names.filter(|name| name != "input_ids").collect()
    }
}

/// How far a result may be from what is expected.
#[derive(Clone, Copy, Debug)]
pub enum Within {
    /// The difference's length, in lengths of what is expected.
    Norm(f64),
    /// The largest difference, in largest magnitudes of what is expected.
    Largest(f64),
    /// Each difference, in magnitudes of its own element.
    Each(f64),
    /// Each difference, in magnitudes of its own element plus one.
    EachAndOne(f64),
}

/// Pearson's chi-square test, at one in 10^5: whether things were counted as often as each one's probability says. Those that are
/// expected fewer than five times count together; what cannot be must not have been.
pub fn chi_square_fits(counts: &[usize], exact: &[f64]) -> Result<(), String> {
    let all: usize = counts.iter().sum();
    let (mut statistic, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
    let part = |count: f64, expected: f64| (count - expected).powi(2) / expected;
    for (thing, (count, probability)) in counts.iter().zip(exact).enumerate() {
        let (count, expected) = (*count as f64, probability * all as f64);
        if expected == 0.0 && count > 0.0 {
            return Err(format!("{thing} cannot be, and was {count} times"));
        }
        if expected < 5.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            statistic += part(count, expected);
            cells += 1.0;
        }
    }
    if rare.1 > 0.5 {
        statistic += part(rare.0, rare.1);
        cells += 1.0;
    }
    // The quantile by Wilson and Hilferty's cube, 4.26 deviations out.
    let freedom: f64 = cells - 1.0;
    let cube = 2.0 / (9.0 * freedom);
    let limit = freedom * (1.0 - cube + 4.26 * cube.sqrt()).powi(3);
    match freedom < 1.0 || statistic <= limit {
        true => Ok(()),
        false => Err(format!(
            "chi-square {statistic:.1} of {freedom} degrees of freedom, more than {limit:.1}: {counts:?}"
        )),
    }
}

/// The length of the difference of two vectors, in lengths of the expected one; NaN if they differ in length.
pub fn relative_error(found: &[impl Copy + Into<f64>], expected: &[impl Copy + Into<f64>]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    let (mut error, mut total) = (0.0, 0.0);
    for (found, expected) in found.iter().zip(expected) {
        let (found, expected): (f64, f64) = ((*found).into(), (*expected).into());
        error += (found - expected).powi(2);
        total += expected.powi(2);
    }
    (error / total).sqrt()
}

/// Panics unless a result is as near as it must be.
pub fn assert_close(
    what: &str,
    found: &[impl Copy + Into<f64>],
    expected: &[impl Copy + Into<f64>],
    within: Within,
) {
    if let Some(why) = too_far(found, expected, within) {
        panic!("{what}: {why}");
    }
}

/// Why a result is not as near as it must be; `None` if it is. NaN is never near.
fn too_far(
    found: &[impl Copy + Into<f64>],
    expected: &[impl Copy + Into<f64>],
    within: Within,
) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{} values, not {}", found.len(), expected.len()));
    }
    let limit = match within {
        Within::Norm(limit) => {
            let error = relative_error(found, expected);
            let why = || format!("relative error {error:.3e} > {limit:.0e}");
            return (error.is_nan() || error > limit).then(why);
        }
        Within::Largest(limit) | Within::Each(limit) | Within::EachAndOne(limit) => limit,
    };
    let magnitudes = expected.iter().map(|value| (*value).into().abs());
    let largest = magnitudes.fold(0.0, f64::max);
    let mut pairs = (0..).zip(found.iter().zip(expected));
    pairs.find_map(|(place, (found, expected)): (usize, _)| {
        let (found, expected): (f64, f64) = ((*found).into(), (*expected).into());
        let unit = match within {
            Within::Each(_) => expected.abs(),
            Within::EachAndOne(_) => 1.0 + expected.abs(),
            _ => largest,
        };
        let off = (found - expected).abs();
        let why = || format!("[{place}]: {found} for {expected}, off by {off:.1e}");
        (off.is_nan() || off > limit * unit).then(why)
    })
}

pub fn trials() -> Vec<Trial> {
    suite!("numbers": near_is_near_and_far_is_far, counts_fit_and_do_not)
}

fn counts_fit_and_do_not() {
    let exact = [0.5, 0.3, 0.2, 0.0];
    let fits = |counts: [usize; 4]| chi_square_fits(&counts, &exact).is_ok();
    // At 2 degrees of freedom and 10^-5 the limit is 23.03; these have 0, 15.4, 42.7, and what cannot be.
    assert!(fits([10_000, 6000, 4000, 0]) && fits([10_240, 5760, 4000, 0]));
    assert!(!fits([10_400, 5600, 4000, 0]) && !fits([10_000, 6000, 3999, 1]));
}

fn near_is_near_and_far_is_far() {
    let expected = [4.0, -0.5, 0.0];
    // Changes of the second element by 1 % of it, of it plus one, of the largest, and of the length.
    for (within, near) in [
        (Within::Each(0.01), 0.005),
        (Within::EachAndOne(0.01), 0.015),
        (Within::Largest(0.01), 0.04),
        (Within::Norm(0.01), 0.0403),
    ] {
        let changed = |by: f64| [4.0, -0.5 + by, 0.0];
        assert_eq!(too_far(&changed(0.99 * near), &expected, within), None);
        for far in [1.01 * near, -1.01 * near, f64::NAN, f64::INFINITY] {
            let noticed = too_far(&changed(far), &expected, within).is_some();
            assert!(noticed, "{within:?}: {far}");
        }
        assert!(too_far(&expected[..2], &expected, within).is_some(), "{within:?}");
    }
}
