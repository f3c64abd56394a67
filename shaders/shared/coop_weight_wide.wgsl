// Weights on their way into a tile: numbers of 16 and 32 bits, four columns of a row at a time, rounded to f16.
#import coop_wide
alias Loaded = code_t;

// Where an invocation's pieces begin.
fn weight_place(lane: u32, piece: u32, first_row: u32) -> u32 {
    let row = params.row_start + min(first_row + spread(lane / QUADS + piece * LINES), params.rows - 1u);
    return row * (params.code_words / WIDE_WORDS) + lane % QUADS;
}

fn load_weight(place: u32, lane: u32, start: u32) -> Loaded {
    return codes[place + start / 4u];
}

fn load_weight_edge(place: u32, lane: u32, start: u32) -> Loaded {
    if start + lane % QUADS * 4u >= params.columns {
        return Loaded();
    }
    return codes[place + start / 4u];
}

fn store_weight(lane: u32, piece: u32, loaded: Loaded) {
    weight_tile[spread(lane / QUADS + piece * LINES) * PITCH + lane % QUADS] = wide_values(loaded);
}
