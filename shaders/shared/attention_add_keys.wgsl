            // Keys that not every token's window holds, keys that all see, keys that not every token is behind of.
            let end_at_hand = min(begin + ROWS_AT_ONCE, present);
            var k = u32(max(i32(begin), low));
            for (; k < end_at_hand && i32(k) < low + 3; k++) {
                add_row(k, k - begin, lane, seen_by(own - i32(k)), &sums);
            }
            for (; k + 4u <= end_at_hand && i32(k) + 3 <= own; k += 4u) {
                add_rows(k, k - begin, lane, &sums);
            }
            for (; k < end_at_hand && i32(k) <= own + 3; k++) {
                add_row(k, k - begin, lane, seen_by(own - i32(k)), &sums);
            }
