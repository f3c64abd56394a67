    if direct {
#for i in TM
#for j in TN
        let place{i}_{j} = corner + {i}u * COOP * stride + {j}u * COOP;
        coopStoreT(sum{i}_{j}, &result[place{i}_{j}], stride);
#end
#end
    } else {
#import coop_staged
    }
