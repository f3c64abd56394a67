// Four weights of a row, f16, two of them kept. `column` is a multiple of 4.
#import kept_place
#import kept_values

fn weight4(row: u32, column: u32) -> vec4<f32> {
    let block = column >> 5u;
    let quad = (column >> 2u) & 7u;
    let pair = unpack2x16float(code_word(kept_codes(row) + block * 8u + quad));
    return kept_values(pair, kept_columns(row, block) >> quad);
}
