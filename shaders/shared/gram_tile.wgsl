// Tiles of EDGE x EDGE on and above the diagonal of a symmetric result: bands of BAND rows of tiles, each from its diagonal to
// the right, column by column, so that what neighbours read stays in the cache.
const BAND: u32 = 8u;

// Row and column of the tile at a slot. The corner of a band has slots for tiles below the diagonal too.
fn gram_tile(slot: u32) -> vec2<u32> {
    let tiles = (params.width + EDGE - 1u) / EDGE;
    var start = 0u;
    var left = slot;
    while start + BAND < tiles && left >= BAND * (tiles - start) {
        left -= BAND * (tiles - start);
        start += BAND;
    }
    let height = min(BAND, tiles - start);
    return vec2(start + left % height, start + left / height);
}
