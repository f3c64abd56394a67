//! How much of each block goes: an even share, or less where it hurts more.
//!
//! OWL (Yin et al. 2023, arXiv 2310.05175, section 3.3) keeps more of blocks with many outliers: scores more than M times the
//! mean of their block. The shares that stay are spread evenly over 2 lambda by the outliers' share and have the mean that was
//! asked for. The same spread takes any other measure of what a block loses.

/// The share of scores that are more than `factor` times their mean (equation 2 there, as a share); 0 of none.
pub fn outlier_share(scores: &[Vec<f32>], factor: f64) -> f64 {
    let all = || scores.iter().flatten().map(|score| f64::from(*score));
    let count = scores.iter().map(Vec::len).sum::<usize>().max(1) as f64;
    let limit = factor * all().sum::<f64>() / count;
    all().filter(|score| *score > limit).count() as f64 / count
}

/// The share of each block that goes, by what it would lose (in whatever unit) and its weights: at most `spread` from one
/// another's middle as OWL spreads them, `ratio` on the mean over all weights. Equal losses give equal shares.
pub fn spread(losses: &[f64], weights: &[u64], ratio: f64, spread: f64) -> Vec<f64> {
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let most = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most <= least || most - least == f64::INFINITY {
        return vec![ratio; losses.len()];
    }
    let raised: Vec<f64> =
        losses.iter().map(|loss| 2.0 * spread * (loss - least) / (most - least)).collect();
    let total: u64 = weights.iter().sum();
    let sum: f64 = raised.iter().zip(weights).map(|(raised, w)| raised * *w as f64).sum();
    let mean = sum / total.max(1) as f64;
    raised.iter().map(|raised| ratio - raised + mean).collect()
}

/// The number of lowest scores in all, found without holding them: one pass over all scores counts how often the upper half of
/// their bits occurs, a second one the lower half. Scores are not negative, so that their bits have their order.
#[derive(Debug)]
pub struct Threshold {
    counts: Vec<u64>,
    /// The upper half of the threshold's bits, once it is known, and how many of its scores still go.
    upper: Option<(u32, u64)>,
}

impl Default for Threshold {
    fn default() -> Self {
        Self { counts: vec![0; 1 << 16], upper: None }
    }
}

impl Threshold {
    /// Counts some scores.
    pub fn count(&mut self, scores: &[f32]) {
        for bits in scores.iter().map(|score| score.to_bits()) {
            match self.upper {
                None => self.counts[(bits >> 16) as usize] += 1,
                Some((upper, _)) if bits >> 16 == upper => {
                    self.counts[(bits & 0xffff) as usize] += 1;
                }
                Some(_) => {}
            }
        }
    }

    /// After the first pass: where the threshold is, if `go` of the scores go. After the second one with what it was told then: the
    /// threshold, and how many of the scores that equal it go with those below it.
    pub fn next(&mut self, go: u64) -> Option<(f32, u64)> {
        let go = self.upper.map_or(go, |(_, go)| go);
        let (mut before, mut bin) = (0, 0);
        while bin + 1 < self.counts.len() && before + self.counts[bin] <= go {
            before += self.counts[bin];
            bin += 1;
        }
        match self.upper {
            None => {
                self.upper = Some((bin as u32, go - before));
                self.counts.fill(0);
                None
            }
            Some((upper, _)) => Some((f32::from_bits(upper << 16 | bin as u32), go - before)),
        }
    }
}
