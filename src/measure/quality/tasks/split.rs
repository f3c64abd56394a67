//! Batching of questions: common prefixes, and how many questions fit a pass.

use super::score::{Batching, Question, Request};
use crate::model::{Llama, Pass};

/// Tokens of a pass at most, where the number of questions is not given.
const BATCH_TOKENS: usize = 4096;

/// Places of questions by family, in the order of their first; those that are alone are put together.
pub fn families(questions: &[Question]) -> Vec<Vec<usize>> {
    let count = questions.iter().map(|q| q.family + 1).max().unwrap_or(0);
    let mut families: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (index, question) in questions.iter().enumerate() {
        families[question.family].push(index);
    }
    let (alone, mut families): (Vec<_>, Vec<_>) =
        families.into_iter().partition(|family| family.len() == 1);
    if !alone.is_empty() {
        families.push(alone.concat());
    }
    families.retain(|family| !family.is_empty());
    families
}

/// How many tokens the inputs of requests begin with in common.
pub fn common<'a>(requests: impl Iterator<Item = &'a Request> + Clone) -> usize {
    let mut others = requests.clone();
    let Some(first) = others.next() else {
        return 0;
    };
    others.fold(first.inputs(), |length, other| {
        let equal = first.input().zip(other.input()).take(length);
        equal.take_while(|(a, b)| a == b).count()
    })
}

/// The number of tokens that all inputs of a family begin with. The token before the first scored one is never among them.
pub fn common_prefix(questions: &[Question], family: &[usize]) -> usize {
    let requests = family.iter().flat_map(|index| &questions[*index].requests);
    let shortest = requests.clone().map(|request| request.context.len() - 1);
    common(requests.clone()).min(shortest.min().unwrap_or(0))
}

/// A question, and how many tokens its choices have in common; 0 where nothing is shared.
pub struct Split<'a> {
    /// Its place among all questions.
    pub index: usize,
    /// Its requests.
    pub question: &'a Question,
    /// Tokens that the inputs of its requests begin with in common.
    pub stem: usize,
}

impl Split<'_> {
    /// Tokens of its longest input.
    pub fn longest(&self) -> usize {
        let inputs = self.question.requests.iter().map(Request::inputs);
        inputs.max().unwrap_or(0)
    }

    /// Requests that continue after the stem.
    pub fn branches(&self) -> impl Iterator<Item = (usize, &Request)> {
        let requests = self.question.requests.iter().enumerate();
        requests.filter(|(_, request)| request.inputs() > self.stem)
    }
}

/// Sizes of the rows that questions make.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Rows of stems.
    pub questions: usize,
    /// Most tokens of a stem after the prefix.
    pub stem: usize,
    /// Most tokens of a stem with the prefix.
    pub held: usize,
    /// Rows of branches.
    pub branches: usize,
    /// Most tokens of a branch after its stem.
    pub branch: usize,
}

impl Sizes {
    /// Counts a question's rows after a prefix of this many tokens.
    pub fn add(&mut self, split: &Split<'_>, prefix: usize) {
        self.questions += 1;
        self.stem = self.stem.max(split.stem - prefix);
        self.held = self.held.max(split.stem);
        for (_, request) in split.branches() {
            self.branches += 1;
            self.branch = self.branch.max(request.inputs() - split.stem);
        }
        // Where a prefix covers every question whole, a token of filling carries it to the choices.
        if prefix > 0 {
            self.stem = self.stem.max(1);
        }
    }

    fn tokens(&self) -> usize {
        self.questions * self.stem + self.branches * self.branch
    }

    /// Tokens that caches hold: of questions, and of choices.
    fn cached(&self, prefix: usize) -> (usize, usize) {
        let stems = self.questions * (prefix + self.stem);
        (stems, self.branches * (self.held + self.branch))
    }
}

/// How many of the next questions make a pass: at least one.
pub fn fitting(
    model: &Llama,
    pass: &Pass<'_>,
    splits: &[Split<'_>],
    prefix: usize,
    batching: Batching,
) -> usize {
    let config = model.config();
    let widths = config.widest();
    let widest = config.hidden_size.max(widths.intermediate_size);
    let cached = widths.kv_heads * config.head_dim;
    let most = (pass.device.max_tensor_bytes() / 4) as usize;
    let mut sizes = Sizes::default();
    for (count, split) in splits.iter().enumerate() {
        sizes.add(split, prefix);
        let full = match batching.batch {
            Some(batch) => count >= batch.max(1),
            None => sizes.tokens() > BATCH_TOKENS,
        };
        let (stems, branches) = sizes.cached(prefix);
        let large = stems.max(branches) * cached > most || sizes.tokens() * widest > most;
        if count > 0 && (full || large) {
            return count;
        }
    }
    splits.len()
}
