// Weights on their way into a tile: blocks of 32 columns of f16, two of every four kept, put in their places where they
// are stored. A step's blocks are as many as the invocations, or a multiple.
#import kept_place
#import kept_values
const BLOCKS: u32 = STEP / 32u;

struct Loaded {
    codes: array<vec2<u32>, 4>,
    kept: u32,
}

// The row of an invocation's piece.
fn weight_place(lane: u32, piece: u32, first_row: u32) -> u32 {
    return params.row_start + min(first_row + (lane + piece * THREADS) / BLOCKS, params.rows - 1u);
}

fn load_weight(row: u32, lane: u32, start: u32) -> Loaded {
    let block = start / 32u + lane % BLOCKS;
    let first = kept_codes(row) / 2u + block * 4u;
    let four = array<vec2<u32>, 4>(codes[first], codes[first + 1u], codes[first + 2u], codes[first + 3u]);
    return Loaded(four, kept_columns(row, block));
}

fn load_weight_edge(row: u32, lane: u32, start: u32) -> Loaded {
    if start + lane % BLOCKS * 32u >= params.columns {
        return Loaded();
    }
    return load_weight(row, lane, start);
}

fn store_weight(lane: u32, piece: u32, loaded: Loaded) {
    let at = lane + piece * THREADS;
    let place = at / BLOCKS * PITCH + at % BLOCKS * 8u;
#for q in 4
    weight_tile[place + 2u * {q}u] = vec4<f16>(kept_values(unpack2x16float(loaded.codes[{q}].x), loaded.kept >> (2u * {q}u)));
    weight_tile[place + 2u * {q}u + 1u] = vec4<f16>(kept_values(unpack2x16float(loaded.codes[{q}].y), loaded.kept >> (2u * {q}u + 1u)));
#end
}
