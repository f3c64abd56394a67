//! Tuning a device: every candidate for a class of products checked, then timed; the quickest wins.

use std::time::{Duration, Instant};

use crate::device::{Failure, Runner, check_case};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::kernels::matmul::product::{Choice, MatmulShape};
use crate::measure::speed::kernels::{Load, measure};

/// Seconds that one candidate is timed.
const EACH: Duration = Duration::from_millis(60);

/// Rows and tokens of the smaller product that a candidate is checked on: the check computes it on the processor.
const CHECKED: (usize, usize) = (300, 20);

/// The result of tuning a class.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// The class.
    pub class: String,
    /// The analytic choice, and its microseconds.
    pub analytic: (String, f64),
    /// The quickest, and its microseconds.
    pub winner: (String, f64),
    /// Candidates timed.
    pub candidates: usize,
}

/// Every candidate for a product that the device can hold, with its microseconds. A candidate with a wrong result is an
/// error: no measurement may hide it.
pub fn candidates(runner: &Runner, product: &MatmulShape) -> Result<Vec<(Choice, f64)>> {
    let small = MatmulShape {
        rows: product.rows.min(CHECKED.0),
        tokens: product.tokens.min(CHECKED.1),
        ..*product
    };
    let mut timed = Vec::new();
    let choices = product.candidates(runner.gpu().capabilities());
    prepare(runner, &choices);
    // All are checked before the first is timed: meanwhile the device's clocks fall.
    let mut right = Vec::new();
    for choice in choices {
        interrupt::check()?;
        match check_case(runner, choice.kernel(), &choice.variant, &choice.case(&small)) {
            Ok(_) => right.push(choice),
            Err(Failure::Error(Error::Limit { .. })) => {}
            Err(failure) => {
                return Err(Error::Device {
                    during: format!("the check of {}", choice.label()),
                    reason: failure.to_string(),
                });
            }
        }
    }
    for choice in right {
        interrupt::check()?;
        let load = if timed.is_empty() { Load::Full } else { Load::Short };
        match seconds(runner, &choice, product, load) {
            Ok(seconds) => timed.push((choice, seconds * 1e6)),
            // The small case fitted, this shape does not.
            Err(Error::Limit { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(timed)
}

/// Compiles candidates, several at a time: a driver may take seconds for each.
pub fn prepare(runner: &Runner, choices: &[Choice]) {
    let variants: Vec<_> =
        choices.iter().map(|choice| (choice.kernel(), choice.variant.clone())).collect();
    runner.prepare_all(&variants);
}

/// Times the candidates for a product; `None` where there is but one, or none that the device holds.
pub fn tune(runner: &Runner, product: &MatmulShape) -> Result<Option<Tuned>> {
    if product.candidates(runner.gpu().capabilities()).len() < 2 {
        return Ok(None);
    }
    let timed = candidates(runner, product)?;
    let timed: Vec<_> = timed.iter().map(|(choice, us)| (choice.label(), *us)).collect();
    let Some(winner) = timed.iter().min_by(|a, b| a.1.total_cmp(&b.1)).cloned() else {
        return Ok(None);
    };
    Ok(Some(Tuned {
        class: product.class(),
        analytic: timed[0].clone(),
        winner,
        candidates: timed.len(),
    }))
}

/// The median time of a product that way, with the quantization of its activations and the merging of its parts where
/// there is one.
fn seconds(runner: &Runner, choice: &Choice, product: &MatmulShape, load: Load) -> Result<f64> {
    let median = |mut samples: Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    };
    let case = choice.case(product);
    let (samples, _) = measure(runner, choice.kernel(), &choice.variant, &case, EACH, load)?;
    let mut seconds = median(samples);
    for (kernel, variant, case) in choice.steps(product) {
        seconds += median(measure(runner, kernel, &variant, &case, EACH, Load::Short)?.0);
    }
    Ok(seconds)
}

/// Tunes products until the time is up. `found` hears of each as it comes. Returns how
/// many products were left out.
pub fn tune_all(
    runner: &Runner,
    products: &[MatmulShape],
    budget: Duration,
    mut progress: impl FnMut(usize, &MatmulShape),
    mut found: impl FnMut(Tuned) -> Result<()>,
) -> Result<usize> {
    let start = Instant::now();
    for (index, product) in products.iter().enumerate() {
        if start.elapsed() > budget {
            return Ok(products.len() - index);
        }
        progress(index, product);
        tune(runner, product)?.map_or(Ok(()), &mut found)?;
    }
    Ok(0)
}
