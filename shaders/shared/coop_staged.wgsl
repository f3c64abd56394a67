    // Matrix by matrix through workgroup memory: for edges, biases and results that are not f32.
    let mine = subgroup * COOP * SCRATCH;
    let scratch_pitch = SCRATCH;
#for i in TM
#for j in TN
    workgroupBarrier();
    coopStoreT(sum{i}_{j}, &scratch[mine], scratch_pitch);
    workgroupBarrier();
    for (var e = within; e < COOP * COOP; e += SUBGROUP) {
        let token = first_token + token_part + {i}u * COOP + e / COOP;
        let row = first_row + row_part + {j}u * COOP + e % COOP;
        if token < params.tokens && row < params.rows {
            store_result(token, row, scratch[mine + e / COOP * SCRATCH + e % COOP]);
        }
    }
#end
#end
