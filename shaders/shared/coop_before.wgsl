    // Whole tiles of f32 go straight to the result, where its rows begin at multiples of 16 bytes; what they are added to is
    // where the sums begin.
    let stride = params.out_stride;
    let aligned = ((stride | params.out_offset) & 3u) == 0u;
    let direct = aligned & ((params.epilogue & ~EPILOGUE_ADD) == 0u) & (first_token + BM <= params.tokens) & (first_row + BN <= params.rows);
    let corner = (params.result_start + part_tokens + first_token + token_part) * stride + params.out_offset + first_row + row_part;
    if direct & (params.epilogue == EPILOGUE_ADD) {
#for i in TM
#for j in TN
        let before{i}_{j} = corner + {i}u * COOP * stride + {j}u * COOP;
        sum{i}_{j} = coopLoadT<coop_c>(&result[before{i}_{j}], stride);
#end
#end
    }
