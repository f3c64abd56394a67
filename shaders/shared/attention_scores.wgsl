        // The scores of an invocation's four tokens beside four of the keys from `start` on, in steps of 32 columns.
        var scores = mat4x4<f32>();
        for (var step = 0u; step < fours; step += 8u) {
#for H in 2
            {
                let four = step + {H}u * 4u + lane % 4u;
                var queried = vec4(0.0);
                if row < count && four < fours {
                    queried = vec4<f32>(query[(base + row * params.heads) * fours + four]) * params.scale;
                }
                memory[{H}u * OWNERS_SECOND + owner_place(row) + lane % 4u] = queried;
#for N in 2
                {
                    let its = row + {N}u * 32u;
                    var keyed = vec4(0.0);
                    if its < present && four < fours {
                        keyed = vec4<f32>(key[cache + (start + its) * pitch + four]);
                    }
                    memory[STREAMED_FIRST * (1u + {H}u) + its * PITCH + lane % 4u] = keyed;
                }
#end
            }
#end
            workgroupBarrier();
            scores = with_products(scores, OWNERS_FIRST, STREAMED_FIRST, lane);
            scores = with_products(scores, OWNERS_SECOND, STREAMED_SECOND, lane);
            workgroupBarrier();
        }
        scores = with_bias(scores, head, start + other, here);
        scores = with_soft_cap(scores);
