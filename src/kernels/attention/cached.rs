//! Attention over a cache of any type: which kernel reads it, and whether it is decoded first.

use super::causal::causal;
use super::tiled::MANY;
use super::{Attention, Seen, split, step};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::kernels::kv::Cached;
use crate::kernels::kv::decode::decode;

/// Attention of some tokens.
#[derive(Clone, Debug)]
pub enum Mixed {
    /// (tokens, heads * head_dim)
    Whole(Tensor),
    /// What [`merge`](super::merge) puts together, f32 (tokens, heads, splits, head_dim + 2).
    Parts(Tensor),
}

/// Attention of a new token of each sequence, which enters the cache: its query, (sequences, heads * head_dim), and key are to be
/// rotated. `None`, and nothing done, where one call does not do all of that.
pub fn entering(
    device: &Device,
    new: [&Tensor; 3],
    rope: (&Tensor, &Tensor),
    caches: (&Cached, &Cached),
    heads: Attention,
    bound: usize,
) -> Result<Option<Mixed>> {
    let sequences = rope.1.len();
    let one = new[0].shape()[0] == sequences;
    let operations = 4.0 * (sequences * heads.query * heads.dim * heads.keys(bound)) as f64;
    let whole = one && operations <= device.call_limit().operations;
    let worth = device.gpu().is_some() && split::pays(&heads, bound);
    if !whole || !worth || !step::takes(device, new, caches, &heads) {
        return Ok(None);
    }
    step::step(device, new, rope, caches, heads, bound).map(|parts| Some(Mixed::Parts(parts)))
}

/// Attention of `query`, (tokens, heads, head_dim), over a layer's cache that holds the new tokens already. `past`: tokens each
/// sequence held before them. `bound`: keys that no token sees more of; a power of two, or the cache's capacity, so that passes
/// one after the other ask for the same.
///
/// Few tokens read the cache as it is, split over the keys where there are many. Many tokens read plain numbers of the
/// activations' type: a cache of another type is decoded for them, a layer at a time.
pub fn cached(
    device: &Device,
    query: &Tensor,
    (keys, values): (&Cached, &Cached),
    past: &Tensor,
    heads: Attention,
    bound: usize,
) -> Result<Mixed> {
    let plain = |cache: &Cached| {
        let found = cache.plain().filter(|(dtype, _)| *dtype == query.dtype());
        found.map(|(_, numbers)| numbers.clone())
    };
    let both = plain(keys).zip(plain(values));
    let few = query.shape()[0] / past.len() < MANY && split::takes(&heads);
    // The processor reads plain numbers as quickly without parts.
    if few && (both.is_none() || device.gpu().is_some() && split::pays(&heads, bound)) {
        let parts = split::split(device, query, (keys, values), past, heads, bound)?;
        return Ok(Mixed::Parts(parts));
    }
    let seen = Seen::causal(past);
    let whole = match both {
        Some((keys, values)) => {
            let capacity = keys.shape()[1];
            causal(device, query, (&keys, &values), seen, heads, capacity)
        }
        None => {
            let keys = decode(device, keys, bound, query.dtype())?;
            let values = decode(device, values, bound, query.dtype())?;
            causal(device, query, (&keys, &values), seen, heads, bound)
        }
    };
    whole.map(Mixed::Whole)
}
