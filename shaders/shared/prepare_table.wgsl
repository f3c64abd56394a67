// Fills the table of levels. Called once, by every invocation, before anything is looked up. Needs: BITS, level_entries.
#import level

fn prepare_levels(lane: u32, size: u32) {
    for (var code = lane; code < (1u << BITS); code += size) {
        level_table[code] = level_entries[code];
    }
    workgroupBarrier();
}
