// The scale of a column's group, for types whose codes are levels.
#import group_scale

fn group_grid(row: u32, column: u32) -> vec2<f32> {
    return vec2(group_scale(row, column), 0.0);
}
