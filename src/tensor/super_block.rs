//! Scales of super-blocks (GGUF's K types): 256 columns share one or two f16 scales, and each group of them has integers that
//! these are multiplied by.
//!
//! Five words hold those of a super-block. The first is the f16 scale `d`, with the f16 scale of the minima in its high half. The
//! other four are 128 bits, half a bit a column, so that every type has one rule: the field of a group of `g` columns is `g / 2`
//! bits and begins at half the number of the group's first column. Where there are minima the group's integer is the lower
//! half of its field and its minimum the upper; elsewhere the field is one signed integer.

/// Columns of a super-block. The last of a row may be shorter.
pub const SUPER_BLOCK: usize = 256;

/// Words of scales of a super-block.
pub const SUPER_WORDS: usize = 5;

/// How a super-block is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SuperBlock {
    /// Columns of a group, 16 or 32.
    pub group: u32,
    /// Bits that a group's integers have: in files, and for what a report counts. In memory they have their field.
    pub bits: u32,
}

impl SuperBlock {
    /// Groups of a whole super-block.
    pub const fn groups(self) -> usize {
        SUPER_BLOCK / self.group as usize
    }

    /// Bits of a group's field.
    pub const fn width(self) -> u32 {
        self.group / 2
    }

    /// The word of a row's scales, and the bit in it, where the field of a group begins.
    fn place(self, group: usize) -> (usize, u32) {
        let bit = group % self.groups() * self.width() as usize;
        (group / self.groups() * SUPER_WORDS + 1 + bit / 32, bit as u32 % 32)
    }

    /// The field of a group of a row, whose scales these words are.
    pub(super) fn field(self, scales: &[u32], group: usize) -> u32 {
        let (word, shift) = self.place(group);
        scales[word] >> shift & self.mask()
    }

    /// Stores the field of a group at a place that holds zero bits.
    pub(super) fn set_field(self, scales: &mut [u32], group: usize, field: u32) {
        let (word, shift) = self.place(group);
        scales[word] |= (field & self.mask()) << shift;
    }

    /// A field as a signed integer.
    pub(super) fn signed(self, field: u32) -> i32 {
        let above = 32 - self.width();
        (field << above) as i32 >> above
    }

    const fn mask(self) -> u32 {
        (1 << self.width()) - 1
    }
}
