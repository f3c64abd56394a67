#import coop_staged
