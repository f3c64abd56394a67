    // Whole tiles of f32 go straight to the result, where its rows begin at multiples of 16 bytes; what they are added to is
    // where the sums begin. Of several layers a tile goes to one.
    let column = params.out_offset + first_row;
    let apart = params.epilogue == EPILOGUE_APART;
    let layer = select(vec2(0u, params.out_stride), layer_of(column), apart);
    let stride = layer.y - layer.x;
    let begin = params.tokens * layer.x + column - layer.x;
    let aligned = ((stride | begin) & 3u) == 0u;
    let plain = apart | ((params.epilogue & ~EPILOGUE_ADD) == 0u);
    let whole = (first_token + BM <= params.tokens) & (first_row + BN <= params.rows) & (column + BN <= layer.y);
    let direct = aligned & plain & whole;
    let corner = begin + (params.result_start + part_tokens + first_token + token_part) * stride + row_part;
    if direct & (params.epilogue == EPILOGUE_ADD) {
#for i in TM
#for j in TN
        let before{i}_{j} = corner + {i}u * COOP * stride + {j}u * COOP;
        sum{i}_{j} = coopLoadT<coop_c>(&result[before{i}_{j}], stride);
#end
#end
    }
