//! SentencePiece-style BPE: between the scores of a GGUF and the merge list of a `tokenizer.json`.
//!
//! SentencePiece joins the neighbours whose union has the best score; a merge list joins the pair that comes first.
//! Listing every split of every token, best token first, makes the two alike. They can differ only where two
//! overlapping pairs spell the same token or where tokens share a score; SentencePiece then goes by position.

use std::collections::{HashMap, HashSet};

/// Longer tokens are refused: listing the splits of a token costs the square of its length.
pub(super) const MAX_TOKEN_BYTES: usize = 512;

/// Every split of every token into two tokens, best score first. The lists have one entry per token; tokens that are
/// not `normal` take no part.
pub(super) fn merges_from_scores<'a>(
    tokens: &[&'a str],
    scores: &[f32],
    normal: &[bool],
) -> Vec<(&'a str, &'a str)> {
    let ids: HashMap<&str, usize> = (0..tokens.len())
        .filter(|&id| normal[id])
        .map(|id| (tokens[id], id))
        .collect();
    let mut order: Vec<usize> = ids.values().copied().collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut merges = Vec::new();
    for id in order {
        let token = tokens[id];
        let mut splits: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?, left, right)))
            .collect();
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|(_, _, left, right)| (left, right)));
    }
    merges
}

/// Scores that make SentencePiece join as the merge list does, by token: minus the position in the order in which the
/// list first makes each token. Tokens that no merge makes get the lowest. `Err` says why no scores can do so.
pub(super) fn scores_from_merges(
    tokens: &[&str],
    normal: &[bool],
    merges: &[(&str, &str)],
) -> Result<Vec<f32>, String> {
    let ids: HashMap<&str, usize> = (0..tokens.len()).map(|id| (tokens[id], id)).collect();
    let mut place: HashMap<usize, usize> = HashMap::new();
    let mut last = None;
    for (left, right) in merges {
        let Some(&id) = ids.get(format!("{left}{right}").as_str()) else {
            return Err(format!("the merge `{left} {right}` makes no token"));
        };
        let next = place.len();
        if place
            .insert(id, place.get(&id).copied().unwrap_or(next))
            .is_some()
            && last != Some(id)
        {
            return Err(format!("merges that make `{}` stand apart", tokens[id]));
        }
        last = Some(id);
    }
    let lowest = place.len();
    let scores: Vec<f32> = (0..tokens.len())
        .map(|id| -(place.get(&id).copied().unwrap_or(lowest) as f32))
        .collect();
    let implied = merges_from_scores(tokens, &scores, normal);
    let listed: HashSet<_> = merges.iter().copied().collect();
    match implied.iter().find(|pair| !listed.contains(*pair)) {
        Some((left, right)) => Err(format!(
            "scores would also allow the merge `{left} {right}`"
        )),
        None if implied.len() < listed.len() => Err("it merges tokens that are not plain".into()),
        None => Ok(scores),
    }
}
