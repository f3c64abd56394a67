    // Whole tiles of f32 go straight to the result, where its rows begin at multiples of 16 bytes.
    let aligned = ((params.out_stride | params.out_offset) & 3u) == 0u;
    if aligned && params.has_bias == 0u && first_token + BM <= params.tokens && first_row + BN <= params.rows {
        let stride = params.out_stride;
        let corner = (params.result_start + first_token + token_part) * stride + params.out_offset + first_row + row_part;
#for i in TM
#for j in TN
        let place{i}_{j} = corner + {i}u * COOP * stride + {j}u * COOP;
        coopStoreT(sum{i}_{j}, &result[place{i}_{j}], stride);
#end
#end
    } else {
#import coop_staged
    }
