// Which keys a token sees, and its scores' biases by distance. Places count from the first key that anybody looks at; `end`: what
// is said of a sequence.

// The last key that a token sees: its own, behind so many places, or the last of all.
fn last_seen(end: u32, order: u32) -> u32 {
    return select(end - 1u, end + order, params.causal == 1u) - params.first;
}

// A token's own place.
fn own_place(end: u32, order: u32) -> u32 {
    return select(order, end + order - params.first, params.causal == 1u);
}

// The bias of a head's score of the key at place `key` for the token at place `own`: the outermost distances stand for all beyond.
fn score_bias(head: u32, key: u32, own: u32) -> f32 {
    let reach = i32(params.distances / 2u);
    let distance = u32(clamp(i32(key) - i32(own), -reach, reach) + reach);
    return bitcast<f32>(places[params.sequences + head * params.distances + distance]);
}
