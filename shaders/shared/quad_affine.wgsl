// Four affine codes of BITS bits as numbers. SCALE 3 and 7 have an offset, others what stands for 0 (src/tensor/weight.rs).

// (Putting code bits under the exponent of 1024 in f16 instead, to spare the conversions, was a tenth slower on an H200.)
fn quad_values(bytes: u32, grid: vec2<f32>) -> vec4<f32> {
    let code = vec4<f32>(unpack4xU8(bytes));
    if SCALE == 3u || SCALE == 7u {
        return grid.x * code + vec4(grid.y);
    }
    return grid.x * (code - vec4(grid.y));
}
