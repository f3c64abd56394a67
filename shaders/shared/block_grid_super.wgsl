// What a block's sum of codes times activations is multiplied by, and what its sum of activations is, to make its products:
// of super-blocks in groups of 32.
#import group_grid

fn block_grid(row: u32, block: u32) -> vec2<f32> {
    return group_grid(row, block * 32u);
}
