    // One head of one token, and the keys that it sees: `count` of them, from the cache's place `first` on.
    let index = group.y * groups.x + group.x;
    if index >= params.tokens * params.heads {
        return;
    }
    let token = params.token_start + index / params.heads;
    let head = index % params.heads;
    let sequence = token / params.tokens_per_sequence;
    let order = token - sequence * params.tokens_per_sequence;
    let end = ends[sequence] + select(0u, order + 1u, params.causal == 1u);
    let count = min(end - min(params.first, end), params.columns);
    let pitch = params.heads * params.head_dim;
    let keys = (sequence * params.capacity + params.first) * pitch + head * params.head_dim;
    let line = index * params.columns;
    let own = (token * params.heads + head) * params.head_dim;
