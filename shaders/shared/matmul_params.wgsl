// Shared by the products: result = x * weight^T and its epilogue (EPILOGUE_). A call covers tokens [token_start,
// token_start + tokens), whose results stand from row result_start on, and rows of the weight from row_start on, whose
// results stand from column out_offset on. Needs: bias, result.
#import params

// Bits of the epilogue: a bias is added; what stands in the result is added; the result holds a gate g, and the product
// is multiplied by activation(g), whose number stands in the bits above; rows are those of several layers, whose results
// stand one behind the other.
const EPILOGUE_BIAS: u32 = 1u;
const EPILOGUE_ADD: u32 = 2u;
const EPILOGUE_GATE: u32 = 4u;
const EPILOGUE_APART: u32 = 8u;
const EPILOGUE_ACTIVATION: u32 = 4u;
#import activation

// The first row of the layer, of several, that a row belongs to, and the first behind it.
fn layer_of(row: u32) -> vec2<u32> {
    if row >= params.third {
        return vec2(params.third, params.out_stride);
    } else if row >= params.second {
        return vec2(params.second, params.third);
    }
    return vec2(0u, params.second);
}

// Where a result of one of several layers stands. `token` is one of all of the call.
fn place_apart(token: u32, row: u32) -> u32 {
    let layer = layer_of(row);
    return params.tokens * layer.x + token * (layer.y - layer.x) + row - layer.x;
}

fn store_result(token: u32, row: u32, sum: f32) {
    let place = params.out_offset + row;
    var at = (params.result_start + token) * params.out_stride + place;
    // Most products have no epilogue. With the way out here rather than behind three tests, the register tiles of f32 are 4 %
    // quicker on an H100.
    if params.epilogue == 0u {
        result[at] = out_t(sum);
        return;
    }
    if (params.epilogue & EPILOGUE_APART) != 0u {
        at = place_apart(token, place);
    }
    var value = sum;
    if (params.epilogue & EPILOGUE_BIAS) != 0u {
        value += bias[place];
    }
    if (params.epilogue & EPILOGUE_ADD) != 0u {
        value += f32(result[at]);
    }
    if (params.epilogue & EPILOGUE_GATE) != 0u {
        value *= activated_by_logistic(f32(result[at]), params.epilogue >> EPILOGUE_ACTIVATION);
    }
    result[at] = out_t(value);
}
