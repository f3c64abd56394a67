//! SentencePiece-style BPE: between the scores of a GGUF and the merge list of a `tokenizer.json`.
//!
//! SentencePiece joins the neighbours whose union has the best score; a merge list joins the pair that comes first.
//! Listing every split of every token, best token first, makes the two alike. They can differ only where two
//! overlapping pairs spell the same token or where tokens share a score; SentencePiece then goes by position.

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::Vocab;

/// Longer tokens are refused: listing the splits of a token costs the square of its length.
const MAX_TOKEN_BYTES: usize = 512;
/// And so are more of these squares together. Gemma's 262 144 tokens come to a twentieth.
const MAX_WORK: usize = 1 << 28;
/// Bytes of all merges, each counted with what holds it; Gemma's 514 906 come to a fifth.
const MAX_MERGE_BYTES: usize = 1 << 27;

/// Whether the splits of these tokens can be listed in reasonable time; `Err` says why not.
fn check_work(tokens: &[&str], normal: &[bool]) -> Result<(), String> {
    let plain = tokens.iter().zip(normal).filter(|(_, normal)| **normal);
    let (mut longest, mut work) = (0, 0);
    for (token, _) in plain {
        longest = longest.max(token.len());
        work += token.len() * token.len();
    }
    if longest > MAX_TOKEN_BYTES {
        return Err(format!("a token of {longest} bytes, more than {MAX_TOKEN_BYTES}"));
    }
    if work > MAX_WORK {
        return Err(format!("tokens whose squared lengths come to {work}, more than {MAX_WORK}"));
    }
    Ok(())
}

/// Every split of every token into two tokens, best score first. The lists have one entry per token, `ids` are their places
/// in them; tokens that are not `normal` take no part. `Err`: there would be too many.
pub(super) fn merges_from_scores<'a>(
    tokens: &[&'a str],
    ids: &Vocab,
    scores: &[f32],
    normal: &[bool],
) -> Result<Vec<(&'a str, &'a str)>, String> {
    check_work(tokens, normal)?;
    let known = |part: &str| ids.get(part).copied().filter(|&id| normal[id as usize]);
    let mut order: Vec<usize> = (0..tokens.len()).filter(|&id| normal[id]).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let (mut merges, mut splits, mut bytes) = (Vec::new(), Vec::new(), 0);
    for id in order {
        let token = tokens[id];
        splits.clear();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            // Of most splits at least one part is no token, most often the longer one.
            let ids = match left.len() > right.len() {
                true => known(left).and_then(|l| Some((l, known(right)?))),
                false => known(right).and_then(|r| Some((known(left)?, r))),
            };
            splits.extend(ids.map(|ids| (ids, left, right)));
        }
        splits.sort_unstable();
        bytes += splits.len() * (token.len() + 64);
        if bytes > MAX_MERGE_BYTES {
            return Err(format!("merges of more than {MAX_MERGE_BYTES} bytes"));
        }
        merges.extend(splits.iter().map(|&(_, left, right)| (left, right)));
    }
    Ok(merges)
}

/// Scores that make SentencePiece join as the merge list does, by token: minus the position in the order in which the
/// list first makes each token. Tokens that no merge makes get the lowest. `Err` says why no scores can do so.
pub(super) fn scores_from_merges(
    tokens: &[&str],
    normal: &[bool],
    merges: &[(&str, &str)],
) -> Result<Vec<f32>, String> {
    let ids: Vocab = (0..).zip(tokens).map(|(id, token)| (token.to_string(), id)).collect();
    let mut place: HashMap<usize, usize> = HashMap::new();
    let mut last = None;
    for (left, right) in merges {
        let Some(&id) = ids.get(&format!("{left}{right}")) else {
            return Err(format!("the merge `{left} {right}` makes no token"));
        };
        let id = id as usize;
        let next = place.len();
        if place.insert(id, place.get(&id).copied().unwrap_or(next)).is_some() && last != Some(id) {
            return Err(format!("merges that make `{}` stand apart", tokens[id]));
        }
        last = Some(id);
    }
    let lowest = place.len();
    let scores: Vec<f32> =
        (0..tokens.len()).map(|id| -(place.get(&id).copied().unwrap_or(lowest) as f32)).collect();
    let implied = merges_from_scores(tokens, &ids, &scores, normal)?;
    let listed: HashSet<_> = merges.iter().copied().collect();
    match implied.iter().find(|pair| !listed.contains(*pair)) {
        Some((left, right)) => Err(format!("scores would also allow the merge `{left} {right}`")),
        None if implied.len() < listed.len() => Err("it merges tokens that are not plain".into()),
        None => Ok(scores),
    }
}
