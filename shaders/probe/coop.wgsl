// Cooperative-matrix multiply-adds: one subgroup keeps a tile of 2x2 matrices and adds the same four products to it
// STEPS times. A workgroup of 128 has four tiles, which its one, two or four subgroups share. TILES is a multiple of 4.
@group(0) @binding(0) var<storage, read> a: array<f16>;                // (tiles, 2 COOP, COOP)
@group(0) @binding(1) var<storage, read> b: array<f16>;                // (COOP, 2 COOP)
@group(0) @binding(2) var<storage, read_write> result: array<f32>;     // (tiles, 2 COOP, 2 COOP)
#import params

@compute @workgroup_size(128)
fn main(@builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32, @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    // Cooperative operations ask for uniform control flow: every subgroup takes the same number of tiles.
    for (var turn = 0u; turn < 4u / subgroups; turn++) {
        let tile = (group.y * groups.x + group.x) * 4u + turn * subgroups + subgroup;
        let a_base = tile * 2u * COOP * COOP;
        let a0 = coopLoadT<coop_a>(&a[a_base], COOP);
        let a1 = coopLoadT<coop_a>(&a[a_base + COOP * COOP], COOP);
        let b0 = coopLoadT<coop_b>(&b[0], 2u * COOP);
        let b1 = coopLoadT<coop_b>(&b[COOP], 2u * COOP);
        var c00 = coop_c();
        var c01 = coop_c();
        var c10 = coop_c();
        var c11 = coop_c();
        for (var step = 0u; step < params.steps; step++) {
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
        }
        let base = tile * 4u * COOP * COOP;
        let down = base + 2u * COOP * COOP;
        coopStoreT(c00, &result[base], 2u * COOP);
        coopStoreT(c01, &result[base + COOP], 2u * COOP);
        coopStoreT(c10, &result[down], 2u * COOP);
        coopStoreT(c11, &result[down + COOP], 2u * COOP);
    }
}
