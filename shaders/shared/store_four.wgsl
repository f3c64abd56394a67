    // The last vector may be no whole one: what is behind its elements stays as it is.
    if index * 4u + 3u < params.count {
        result[index] = value;
    } else {
#for C in 3
        if index * 4u + {C}u < params.count {
            result[index][{C}] = value[{C}];
        }
#end
    }
