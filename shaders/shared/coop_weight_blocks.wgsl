// Weights on their way into a tile: blocks of 32 codes with the scales of both halves, decoded where they are stored, and
// rounded to f16. A step's blocks are as many as the invocations, or a multiple.
#import block_bytes
#import group_grid
#import quad
const BLOCKS: u32 = STEP / 32u;

struct Loaded {
    words: block_t,
    low: vec2<f32>,
    high: vec2<f32>,
}

// The row of an invocation's piece.
fn weight_place(lane: u32, piece: u32, first_row: u32) -> u32 {
    return params.row_start + min(first_row + (lane + piece * THREADS) / BLOCKS, params.rows - 1u);
}

fn load_weight(row: u32, lane: u32, start: u32) -> Loaded {
    let column = start + lane % BLOCKS * 32u;
    return Loaded(block_load(row, column / 32u), group_grid(row, column), group_grid(row, column + 16u));
}

fn load_weight_edge(row: u32, lane: u32, start: u32) -> Loaded {
    let column = start + lane % BLOCKS * 32u;
    if column >= params.columns {
        return Loaded();
    }
    // Behind the end of a row stand another row's scales.
    let high = min(column + 16u, params.columns - 1u);
    return Loaded(block_load(row, column / 32u), group_grid(row, column), group_grid(row, high));
}

fn store_weight(lane: u32, piece: u32, loaded: Loaded) {
    let at = lane + piece * THREADS;
    let bytes = block_bytes(loaded.words);
    let place = at / BLOCKS * PITCH + at % BLOCKS * 8u;
#for q in 4
    weight_tile[place + {q}u] = vec4<f16>(quad_values(bytes[{q}], loaded.low));
    weight_tile[place + 4u + {q}u] = vec4<f16>(quad_values(bytes[4u + {q}u], loaded.high));
#end
}
