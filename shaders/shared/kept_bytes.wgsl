// Four columns of integer codes, two of them kept, as the bytes of a word: the code of 0 where none is kept.
// Needs: BITS. A multiplication moves a code to its byte.
const NOT_KEPT: u32 = 1u << (BITS - 1u);

// The two codes are the lowest bytes of `pair`; bit 8 i of `kept` says whether column i is.
fn kept_bytes(pair: u32, kept: u32) -> u32 {
    let places = kept & 0x01010101u;
    let upper = places & (places - 1u);
    let lower = places ^ upper;
    return (pair & 0xffu) * lower + ((pair >> 8u) & 0xffu) * upper + NOT_KEPT * (0x01010101u - places);
}
