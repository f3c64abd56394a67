    // The lanes' sums, all below the highest score of any, are one.
    if member == 0u {
#for H in HEADS
        tops[{H}u * at_once + keeper] = highest{H};
#end
    }
#for H in HEADS
    workgroupBarrier();
    {
        var highest = NOTHING;
        for (var other = 0u; other < at_once; other++) {
            highest = max(highest, tops[{H}u * at_once + other]);
        }
        let factor = exp(highest{H} - highest);
#for C in 8
        memory[{C}u * PITCH + lane] = factor * sum{H}[{C}u / 4u][{C}u % 4u];
#end
        if member == 0u {
            memory[8u * PITCH + keeper] = factor * total{H};
        }
        workgroupBarrier();
        let base = ((token * params.heads + first_head + {H}u) * params.splits + split) * (params.head_dim + 2u);
        // Columns, and the total behind the highest score.
        for (var mine = lane; {H}u < present && mine < params.head_dim; mine += LANES) {
            var whole = 0.0;
            for (var other = 0u; other < at_once; other++) {
                whole += memory[mine % 8u * PITCH + other * params.sharers + mine / 8u];
            }
            parts[base + mine] = whole;
        }
        if {H}u < present && lane == LANES - 1u {
            var whole = 0.0;
            for (var other = 0u; other < at_once; other++) {
                whole += memory[8u * PITCH + other];
            }
            parts[base + params.head_dim] = highest;
            parts[base + params.head_dim + 1u] = whole;
        }
    }
#end
