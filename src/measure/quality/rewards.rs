//! How good a reward model is: how often it agrees with preferences, and what the best of several texts by its scores is worth.

use serde::Serialize;

use super::statistics::mean_and_error;

/// How a reward model stands to preferences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// The share of pairs whose preferred text has the higher score; equal scores are wrong.
    pub accuracy: f64,
    /// Its standard error.
    pub stderr: f64,
    /// The mean of -log sigmoid(chosen - rejected), in nats.
    pub loss: f64,
    /// The mean of chosen - rejected.
    pub margin: f64,
    /// Pairs.
    pub n: usize,
}

/// Of the scores of pairs, the preferred one's first.
pub fn agreement(pairs: &[[f64; 2]]) -> Agreement {
    let margins = || pairs.iter().map(|[chosen, rejected]| chosen - rejected);
    let right: Vec<f64> = margins().map(|margin| f64::from(u8::from(margin > 0.0))).collect();
    let (accuracy, stderr) = mean_and_error(&right);
    // log(1 + exp(-m)), whatever the sign of m.
    let loss = |margin: f64| (-margin.abs()).exp().ln_1p() + (-margin).max(0.0);
    let n = pairs.len();
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / n.max(1) as f64;
    Agreement {
        accuracy,
        stderr,
        loss: mean(&mut margins().map(loss)),
        margin: mean(&mut margins()),
        n,
    }
}

/// What the best of so many texts is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BestOf {
    /// Texts, of which the one with the highest score is taken.
    pub n: usize,
    /// The mean of what it is worth by the other judge, over all ways to draw so many of a prompt's texts, and prompts.
    pub reward: f64,
    /// Its standard error, over prompts.
    pub stderr: f64,
    /// The mean of its own score.
    pub own: f64,
}

/// Of each prompt the scores of its texts, and what these are worth by another judge: a row for each power of two up to the fewest
/// texts that a prompt has, and for that number. `None`: a prompt has one text alone, or there is none.
///
/// The mean over all subsets of n of N texts, exactly: with texts in the order of their scores, the one that r others lie below is the
/// best of C(r, n - 1) of the C(N, n) subsets (Nakano et al. 2021, arXiv 2112.09332, appendix I).
pub fn best_of(prompts: &[(&[f64], &[f64])]) -> Option<Vec<BestOf>> {
    let most = prompts.iter().map(|(scores, _)| scores.len()).min().filter(|most| *most > 1)?;
    let mut counts: Vec<usize> =
        (0..).map(|power| 1 << power).take_while(|count| *count < most).collect();
    counts.push(most);
    let row = |n: usize| {
        let of = |(scores, rewards): &(&[f64], &[f64])| {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            let shares = shares_of_best(scores.len(), n);
            let mean = |values: &[f64]| {
                order.iter().zip(&shares).map(|(place, share)| values[*place] * share).sum::<f64>()
            };
            (mean(rewards), mean(scores))
        };
        let (rewards, own): (Vec<f64>, Vec<f64>) = prompts.iter().map(of).unzip();
        let (reward, stderr) = mean_and_error(&rewards);
        BestOf { n, reward, stderr, own: own.iter().sum::<f64>() / own.len() as f64 }
    };
    Some(counts.into_iter().map(row).collect())
}

/// Of all draws of n of so many, the share in which each is the best, from the lowest to the highest: C(r, n - 1) / C(N, n).
fn shares_of_best(all: usize, n: usize) -> Vec<f64> {
    let mut shares = vec![0.0; all];
    // The highest is in n of N draws; each one below by the ratio of neighbouring binomials.
    let mut share = n as f64 / all as f64;
    for below in (n - 1..all).rev() {
        shares[below] = share;
        share *= (below + 1 - n) as f64 / below.max(1) as f64;
    }
    shares
}
