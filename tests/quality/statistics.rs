//! Errors, quantiles and intervals: by hand, and whether intervals hold the truth as often as they say.

use libtest_mimic::{Failed, Trial};
use lopper::device::Random;
use lopper::measure::quality::statistics::{
    Bootstrap, covariance_of_means, mean_and_error, quantile,
};

pub fn trials() -> Vec<Trial> {
    suite!("statistics":
        by_hand, intervals_cover_paired_accuracy, intervals_cover_few_windows, seeds_decide)
}

fn by_hand() -> Result<(), Failed> {
    let values = [1.0, 2.0, 4.0, 9.0];
    let (mean, error) = mean_and_error(&values);
    // Squares around 4: 9 + 4 + 0 + 25 = 38; 38 / 3 / 4.
    assert!(mean == 4.0 && (error - (38.0f64 / 12.0).sqrt()).abs() < 1e-15, "{mean} {error}");
    let (mean, error) = mean_and_error(&[7.0]);
    assert!(mean == 7.0 && error.is_nan(), "one value: {mean} {error}");
    // With (2, 0, 1, 5), mean 2: -3*0 + -2*-2 + 0*-1 + 5*3 = 19; 19 / 3 / 4.
    let covariance = covariance_of_means(&values, &[2.0, 0.0, 1.0, 5.0]);
    assert!((covariance - 19.0 / 12.0).abs() < 1e-15, "{covariance}");
    // numpy.quantile([1, 2, 4, 9], [0, .1, .5, .9, 1])
    let found = [0.0, 0.1, 0.5, 0.9, 1.0].map(|fraction| quantile(&values, fraction));
    let same = found.iter().zip([1.0, 1.3, 3.0, 7.5, 9.0]).all(|(a, b)| (a - b).abs() < 1e-12);
    assert!(same, "{found:?}");
    let none = Bootstrap::seeded(0).mean(&[0.5; 7]);
    assert!(none.is_none(), "{none:?} from seven units");
    Ok(())
}

const TRIALS: usize = 1000;

/// Trials in which the interval holds the truth, of [`TRIALS`].
fn covered(truth: f64, mut sample: impl FnMut(&mut Random) -> Vec<f64>) -> Result<(), Failed> {
    let mut random = Random::new(20);
    let mut held = 0;
    for seed in 0..TRIALS as u64 {
        let values = sample(&mut random);
        let bootstrap = Bootstrap { resamples: 1000, seed };
        let interval = bootstrap.mean(&values).ok_or("enough units")?;
        held += usize::from(interval.low <= truth && truth <= interval.high);
    }
    let share = held as f64 / TRIALS as f64;
    assert!((0.93..=0.97).contains(&share), "{share} of the intervals hold the truth");
    Ok(())
}

/// A child that is right where its parent is right with 85 %, and else with 20 %; the parent is right with 60 %.
fn intervals_cover_paired_accuracy() -> Result<(), Failed> {
    let chance = |random: &mut Random| f64::from(random.value() + 1.0) / 2.0;
    let truth = 0.6 * 0.85 + 0.4 * 0.2 - 0.6;
    covered(truth, |random| {
        let item = |_| {
            let parent = chance(random) < 0.6;
            let child = chance(random) < if parent { 0.85 } else { 0.2 };
            f64::from(child) - f64::from(parent)
        };
        (0..200).map(item).collect()
    })
}

/// Means of windows whose tokens share a part: what the windows of a short text are. As few as a README's example has.
fn intervals_cover_few_windows() -> Result<(), Failed> {
    covered(0.04, |random| {
        let window = |_| {
            let shared = 0.1 * f64::from(random.value());
            let token = |_| 0.04 + shared + 0.6 * f64::from(random.value() * random.value());
            (0..40).map(token).sum::<f64>() / 40.0
        };
        (0..29).map(window).collect()
    })
}

fn seeds_decide() -> Result<(), Failed> {
    let values = Random::new(3).values(50, 1.0);
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    let of = |seed| Bootstrap::seeded(seed).mean(&values);
    assert!(of(1) == of(1) && of(1) != of(2), "the seed decides the draws");
    // Means and intervals of two strata: a difference of means is drawn each for itself.
    let spread = Bootstrap::seeded(1)
        .interval(&[50, 8], |drawn| Some((drawn[0].len() + drawn[1].len()) as f64));
    assert!(
        spread.is_some_and(|interval| interval.low == 58.0 && interval.high == 58.0),
        "{spread:?}"
    );
    Ok(())
}
