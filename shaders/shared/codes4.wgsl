// Four codes of BITS bits of a row. `column` is a multiple of 4.
#import code_bytes

fn codes4(row: u32, column: u32) -> vec4<u32> {
    return unpack4xU8(code_bytes(row, column));
}
