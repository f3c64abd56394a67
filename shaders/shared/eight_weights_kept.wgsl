            // Four kept numbers in one load. Behind the end of a row none are kept.
            let four = codes[kept_codes(row) / 2u + column / 8u];
            let kept = kept_columns(row, column >> 5u) >> ((column >> 2u) & 7u);
            low[r] = kept_values(unpack2x16float(four.x), kept);
            high[r] = kept_values(unpack2x16float(four.y), kept >> 1u);
