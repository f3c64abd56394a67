            low[r] = weight4(row, column);
            high[r] = select(vec4(0.0), weight4(row, column + 4u), more);
