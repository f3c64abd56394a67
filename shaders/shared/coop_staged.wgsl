    // Matrix by matrix through workgroup memory: for edges, epilogues and results that are not f32. There is room for
    // AT_ONCE subgroups' matrices; more room would let fewer workgroups run beside each other.
    let scratch_pitch = SCRATCH;
    for (var turn = 0u; turn < TURNS; turn++) {
        let held = subgroup - turn * AT_ONCE;
        let mine = min(held, AT_ONCE - 1u) * COOP * SCRATCH;
#for i in TM
#for j in TN
        workgroupBarrier();
        if held < AT_ONCE {
            coopStoreT(sum{i}_{j}, &scratch[mine], scratch_pitch);
        }
        workgroupBarrier();
        for (var e = lane; e < AT_ONCE * COOP * COOP; e += THREADS) {
            let owner = turn * AT_ONCE + e / (COOP * COOP);
            let line_of = e / COOP;
            let token = first_token + (owner / WN * TM + {i}u) * COOP + line_of % COOP;
            let row = first_row + (owner % WN * TN + {j}u) * COOP + e % COOP;
            if token < params.tokens && row < params.rows {
                store_result(part_tokens + token, row, scratch[line_of * SCRATCH + e % COOP]);
            }
        }
#end
#end
    }
