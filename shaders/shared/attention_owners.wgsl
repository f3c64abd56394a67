    // One head of 32 tokens of a sequence, of which the last, which see most keys, go first.
    let index = group.y * groups.x + group.x;
    if index >= params.tiles * params.heads {
        return;
    }
    let in_sequence = (params.tokens_per_sequence + OWNERS - 1u) / OWNERS;
    let tile = params.tile_start + index / params.heads;
    let head = index % params.heads;
    let sequence = tile % params.sequences;
    let first = (in_sequence - 1u - tile / params.sequences) * OWNERS;
    let count = min(OWNERS, params.tokens_per_sequence - first);
    let fours = params.head_dim / 4u;
    let pitch = params.kv_heads * fours;
    let cache = (sequence * params.capacity + params.first) * pitch + head / (params.heads / params.kv_heads) * fours;
    let base = (sequence * params.tokens_per_sequence + first) * params.heads + head;
