        // The scores of as many keys as a lane takes at once, with each of its heads. Needs: query, key of each, and whose columns count.
        var products: array<f32, SUMS>;
#for R in ROWS
#for H in HEADS
        products[{R}u * HEADS + {H}u] = select(0.0, dot(query{H}[0], key{R}[0]) + dot(query{H}[1], key{R}[1]), member < eights);
#end
#end
        var scores = lane_totals(products, place, params.sharers);
        if params.soft_cap > 0.0 {
#for I in SUMS
            scores[{I}] = soft_capped(scores[{I}], params.soft_cap);
#end
        }
