//! Which tensor gets which type, so that all together lose least within a number of bytes: a knapsack with one choice for each
//! tensor. What a tensor loses does not depend on the others, as far as losses are small (the loss is quadratic in what is lost,
//! and the cross terms of unlike tensors are near 0 on average).

/// A type that a tensor can have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it takes.
    pub bytes: u64,
    /// What is lost.
    pub loss: f64,
}

/// Steps that the bytes to be given out are counted in. Each tensor's are rounded up to whole ones; what that leaves is given out
/// at the end.
const STEPS: u64 = 1 << 16;

/// For each tensor one of its choices (it has at least one), with the least loss in all within `budget` bytes. The error: the
/// least bytes that there are.
pub fn assign(tensors: &[Vec<Choice>], budget: u64) -> Result<Vec<usize>, u64> {
    let least =
        |choices: &Vec<Choice>| choices.iter().map(|choice| choice.bytes).min().unwrap_or(0);
    let minimum: u64 = tensors.iter().map(least).sum();
    let Some(free) = budget.checked_sub(minimum) else { return Err(minimum) };
    let step = free.div_ceil(STEPS).max(1);
    let steps = (free / step) as usize;
    // The least loss of the tensors so far that takes at most so many steps, and each tensor's choice for that.
    let mut losses = vec![0.0f64; steps + 1];
    let mut chosen: Vec<Vec<u8>> = Vec::with_capacity(tensors.len());
    for choices in tensors {
        let least = least(choices);
        let cost = |choice: &Choice| (choice.bytes - least).div_ceil(step) as usize;
        let costs: Vec<usize> = choices.iter().map(cost).collect();
        let mut next = vec![f64::INFINITY; steps + 1];
        let mut best = vec![0u8; steps + 1];
        for (index, (choice, cost)) in choices.iter().zip(&costs).enumerate().take(256) {
            for at in *cost..=steps {
                let loss = losses[at - cost] + choice.loss;
                if loss < next[at] {
                    (next[at], best[at]) = (loss, index as u8);
                }
            }
        }
        losses = next;
        chosen.push(best);
    }
    let mut left = steps;
    let mut found = vec![0; tensors.len()];
    for (place, choices) in tensors.iter().enumerate().rev() {
        let index = usize::from(chosen[place][left]);
        let least = least(choices);
        left -= (choices[index].bytes - least).div_ceil(step) as usize;
        found[place] = index;
    }
    spend(tensors, budget, &mut found);
    Ok(found)
}

/// Gives out what is left, where a byte helps most first.
fn spend(tensors: &[Vec<Choice>], budget: u64, found: &mut [usize]) {
    loop {
        let spent: u64 = tensors.iter().zip(&*found).map(|(t, index)| t[*index].bytes).sum();
        let left = budget - spent.min(budget);
        let mut best: Option<(f64, usize, usize)> = None;
        for (place, choices) in tensors.iter().enumerate() {
            let now = choices[found[place]];
            for (index, choice) in choices.iter().enumerate() {
                let gain = now.loss - choice.loss;
                let more = choice.bytes.saturating_sub(now.bytes);
                if gain <= 0.0 || more > left {
                    continue;
                }
                let rate = gain / more.max(1) as f64;
                if best.is_none_or(|(most, ..)| rate > most) {
                    best = Some((rate, place, index));
                }
            }
        }
        match best {
            Some((_, place, index)) => found[place] = index,
            None => return,
        }
    }
}
