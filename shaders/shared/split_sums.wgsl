        // The running softmax of each head takes them in. Needs: value of each, and which of the keys there are.
#for H in HEADS
        {
            var highest = highest{H};
#for R in ROWS
            let score{R} = scores[{R}u * HEADS + {H}u];
            highest = select(highest, score{R}, exists{R} && score{R} > highest);
#end
            let correction = exp(highest{H} - highest);
            highest{H} = highest;
            total{H} *= correction;
            sum{H} *= correction;
            // NaN scores never win the maximum above; let them through here.
#for R in ROWS
            if exists{R} {
                let weight = exp(score{R} - highest);
                total{H} += weight;
                sum{H} += weight * value{R};
            }
#end
        }
#end
