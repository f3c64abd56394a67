// 32 random bits for four words: pcg4d of Jarzynski and Olano 2020 ("Hash Functions for GPU Rendering", JCGT 9), the last of its
// words, in which all four have met.
fn pcg4d(key: vec4<u32>) -> u32 {
    var v = key * 1664525u + 1013904223u;
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    v ^= v >> vec4(16u);
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    return v.w;
}
