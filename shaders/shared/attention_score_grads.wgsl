        // The gradients of the scores of an invocation's four tokens beside four of the keys from `start` on: products in steps of 16
        // columns, then with the log-sum-exps `lse` and the products `delta` of its tokens.
        var scores = mat4x4<f32>();
        var weight_grads = mat4x4<f32>();
        for (var step = 0u; step < fours; step += 4u) {
            let four = step + lane % 4u;
            var queried = vec4(0.0);
            var graded = vec4(0.0);
            if row < count && four < fours {
                let at = (base + row * params.heads) * fours + four;
                queried = vec4<f32>(query[at]) * params.scale;
                graded = vec4<f32>(grad[at]);
            }
            memory[OWNERS_FIRST + owner_place(row) + lane % 4u] = queried;
            memory[OWNERS_SECOND + owner_place(row) + lane % 4u] = graded;
#for N in 2
            {
                let its = row + {N}u * 32u;
                var keyed = vec4(0.0);
                var valued = vec4(0.0);
                if its < present && four < fours {
                    let at = cache + (start + its) * pitch + four;
                    keyed = vec4<f32>(key[at]);
                    valued = vec4<f32>(value[at]);
                }
                memory[STREAMED_FIRST + its * PITCH + lane % 4u] = keyed;
                memory[STREAMED_SECOND + its * PITCH + lane % 4u] = valued;
            }
#end
            workgroupBarrier();
            scores = with_products(scores, OWNERS_FIRST, STREAMED_FIRST, lane);
            weight_grads = with_products(weight_grads, OWNERS_SECOND, STREAMED_SECOND, lane);
            workgroupBarrier();
        }
        scores = with_bias(scores, head, start + other, here);
        scores = with_soft_cap(scores);
#for J in 4
        scores[{J}] = exponentials(scores[{J}] - lse) * (weight_grads[{J}] - delta) * soft_cap_slopes(scores[{J}]);
#end
