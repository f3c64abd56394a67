// Four columns of numbers, two of them kept: 0 where none is. Bit 8 i of `kept` says whether column i is.
fn kept_values(pair: vec2<f32>, kept: u32) -> vec4<f32> {
    let second = vec3(
        select(pair.x, pair.y, (kept & 0x1u) != 0u),
        select(pair.x, pair.y, (kept & 0x101u) != 0u),
        select(pair.x, pair.y, (kept & 0x10101u) != 0u),
    );
    return vec4(
        select(0.0, pair.x, (kept & 0x1u) != 0u),
        select(0.0, second.x, (kept & 0x100u) != 0u),
        select(0.0, second.y, (kept & 0x10000u) != 0u),
        select(0.0, second.z, (kept & 0x1000000u) != 0u),
    );
}
