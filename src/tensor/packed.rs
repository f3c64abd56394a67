//! A weight matrix on the host in its packed format: the same words that a GPU buffer holds.
//!
//! Layout. Row `r` has `code_words_per_row` words: blocks of 32 codes, `b` words each, `b` the bits of a code. Within a
//! block, codes of up to 8 bits stand as `block` says; wider ones follow one another. Rows are padded to whole blocks
//! with zero bits. Scales stand apart, group by group, row by row (see [`Scale`]).
//!
//! Of a type with a [`Sparsity`] a row begins with a word for each block of 32 columns, whose bits say which of them are
//! kept: bit by bit as a block of 1-bit codes. The codes of the kept columns follow, `kept` places for every `of` columns
//! whether they are taken or not: within a block they stand in order as the first codes of a block of `b`-bit codes would,
//! which for widths that are powers of two fill its first words. Both parts are padded to vectors of four words. A group
//! of columns is counted with those that are not kept.

use rayon::prelude::*;

use super::{BLOCK, Levels, Line, SUPER_BLOCK, SUPER_WORDS, Scale, Sparsity, WeightFormat, block};

/// A matrix of shape (rows, columns) in a weight format.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// How to read the words.
    pub format: WeightFormat,
    /// Output features of a linear layer, or tokens of an embedding.
    pub rows: usize,
    /// Input features: groups run along them.
    pub columns: usize,
    /// (rows, code_words_per_row) words.
    pub codes: Vec<u32>,
    /// (rows, scale_words_per_row) words.
    pub scales: Vec<u32>,
}

impl Packed {
    /// A matrix of zero codes and zero scales, to be filled with the setters.
    pub fn zeros(format: WeightFormat, rows: usize, columns: usize) -> Self {
        let codes = vec![0; rows * format.code_words_per_row(columns)];
        let scales = vec![0; rows * format.scale_words_per_row(columns)];
        Self { format, rows, columns, codes, scales }
    }

    /// f32 values, row-major, kept as they are.
    pub fn from_f32(values: &[f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix has rows * columns values");
        let mut packed = Self::zeros(WeightFormat::f32(), rows, columns);
        let words = packed.format.code_words_per_row(columns);
        for (row, line) in values.chunks_exact(columns.max(1)).enumerate() {
            for (word, value) in packed.codes[row * words..].iter_mut().zip(line) {
                *word = value.to_bits();
            }
        }
        packed
    }

    /// 16-bit codes (f16 or bf16 bits), row-major, little-endian bytes, kept as they are.
    pub fn from_16bit(format: WeightFormat, bytes: &[u8], rows: usize, columns: usize) -> Self {
        assert!(
            format.ty.bits == 16 && bytes.len() == 2 * rows * columns,
            "two bytes per value of a 16-bit type"
        );
        let mut packed = Self::zeros(format, rows, columns);
        let words = format.code_words_per_row(columns);
        for (row, line) in bytes.chunks_exact((2 * columns).max(1)).enumerate() {
            let target: &mut [u8] =
                bytemuck::cast_slice_mut(&mut packed.codes[row * words..(row + 1) * words]);
            target[..line.len()].copy_from_slice(line);
        }
        packed
    }

    /// Bytes in memory and in Lopper's own files.
    pub fn bytes(&self) -> u64 {
        4 * (self.codes.len() + self.scales.len()) as u64
    }

    /// The code at a place.
    pub fn code(&self, row: usize, column: usize) -> u32 {
        let bits = self.format.ty.bits as usize;
        let line = &self.codes[row * self.format.code_words_per_row(self.columns)..];
        if let Some(pattern) = self.format.ty.sparsity {
            let (is_kept, slot) = kept_slot(line, pattern, column);
            if !is_kept {
                return self.format.ty.zero_code();
            }
            let words = self.format.code_words_per_block();
            let first = self.format.kept_words_per_row(self.columns) + column / BLOCK * words;
            return slot_code(&line[first..first + words], bits, slot);
        }
        if bits > 8 {
            return wide(line, bits, column);
        }
        block::get(bits, &line[column / BLOCK * bits..], column % BLOCK)
    }

    /// Stores a code at a place that holds zero bits. Of a type with a pattern: in rising order of columns, and no more than
    /// are kept; codes that stand for 0 take no place.
    pub fn set_code(&mut self, row: usize, column: usize, code: u32) {
        let bits = self.format.ty.bits as usize;
        debug_assert!(bits == 32 || code < 1 << bits, "code {code} does not fit {bits} bits");
        let start = row * self.format.code_words_per_row(self.columns);
        if let Some(pattern) = self.format.ty.sparsity {
            if self.format.ty.is_zero(code) {
                return;
            }
            let words = self.format.code_words_per_block();
            let first = start + self.format.kept_words_per_row(self.columns);
            let block = column / BLOCK;
            let mask = &mut self.codes[start + block];
            assert!(kept_below(*mask, pattern, column) < pattern.kept, "no more than are kept");
            *mask |= kept_bit(column % BLOCK);
            let slot = kept_slot(&self.codes[start..], pattern, column).1;
            let words = &mut self.codes[first + block * words..first + (block + 1) * words];
            return match bits {
                16 => words[slot / 2] |= code << (16 * (slot % 2)),
                _ => block::set(bits, words, slot, code),
            };
        }
        if bits > 8 {
            self.codes[start + column * bits / 32] |= code << (column * bits % 32);
            return;
        }
        let words = &mut self.codes[start + column / BLOCK * bits..];
        block::set(bits, words, column % BLOCK, code);
    }

    /// The same values with only the codes that a pattern keeps: the row of the table with the same codes, or else the first
    /// (row, column) whose value, other than 0, is one more than the pattern keeps. -0.0 becomes 0.0. The table must have
    /// the row.
    pub fn sparse(&self, pattern: Sparsity) -> Result<Packed, (usize, usize)> {
        let format = self.format.with_sparsity(Some(pattern)).expect("a row with the pattern");
        let lines = (0..self.rows).into_par_iter().map(|row| {
            let mut line = Packed::zeros(format, 1, self.columns);
            let codes = self.row_codes(row);
            for (index, group) in codes.chunks(pattern.of as usize).enumerate() {
                let mut kept = 0;
                for (place, code) in
                    group.iter().enumerate().filter(|(_, c)| !format.ty.is_zero(**c))
                {
                    let column = index * pattern.of as usize + place;
                    kept += 1;
                    if kept > pattern.kept {
                        return Err((row, column));
                    }
                    line.set_code(0, column, *code);
                }
            }
            Ok(line.codes)
        });
        // Not the first that a thread meets, but the first there is.
        let lines: Vec<Result<Vec<u32>, (usize, usize)>> = lines.collect();
        let lines: Vec<Vec<u32>> = lines.into_iter().collect::<Result<_, _>>()?;
        let (rows, columns) = (self.rows, self.columns);
        Ok(Packed { format, rows, columns, codes: lines.concat(), scales: self.scales.clone() })
    }

    /// The first (row, column) whose value, other than 0, is one more than a pattern keeps. `None`: the matrix has it.
    pub fn first_beyond(&self, pattern: Sparsity) -> Option<(usize, usize)> {
        let in_row = |row: usize| {
            let mut values = vec![0.0; self.columns];
            self.decode_row(row, &mut values);
            let groups = values.chunks(pattern.of as usize).enumerate();
            let mut beyond = groups.filter_map(|(group, values)| {
                let mut others = (0..values.len()).filter(|place| values[*place] != 0.0);
                let place = others.nth(pattern.kept as usize)?;
                Some((row, group * pattern.of as usize + place))
            });
            beyond.next()
        };
        (0..self.rows).into_par_iter().find_map_first(in_row)
    }

    /// The same codes without a pattern.
    pub fn dense(&self) -> Packed {
        if !self.format.ty.is_sparse() {
            return self.clone();
        }
        let format = self.format.dense();
        let lines = (0..self.rows).into_par_iter().map(|row| {
            let mut line = Packed::zeros(format, 1, self.columns);
            let codes = self.row_codes(row).into_iter().enumerate();
            codes.for_each(|(column, code)| line.set_code(0, column, code));
            line.codes
        });
        let lines: Vec<Vec<u32>> = lines.collect();
        let (rows, columns) = (self.rows, self.columns);
        Packed { format, rows, columns, codes: lines.concat(), scales: self.scales.clone() }
    }

    /// The first (row, column) that is marked as kept where its pattern keeps no more, or behind the end of the row: what
    /// only a file from elsewhere can hold. `None` for types without a pattern.
    pub fn first_overfull(&self) -> Option<(usize, usize)> {
        let pattern = self.format.ty.sparsity.filter(|_| self.columns > 0)?;
        let words = self.format.code_words_per_row(self.columns);
        let bits_of = |places: std::ops::Range<usize>| places.map(kept_bit).sum::<u32>();
        let of = pattern.of as usize;
        let groups: Vec<u32> =
            (0..BLOCK / of).map(|group| bits_of(group * of..(group + 1) * of)).collect();
        let beyond = bits_of((self.columns - 1) % BLOCK + 1..BLOCK);
        let last = self.columns.div_ceil(BLOCK) - 1;
        let in_row = |row: usize| {
            let line = &self.codes[row * words..row * words + last + 1];
            let over = |word: &u32| groups.iter().any(|g| (word & g).count_ones() > pattern.kept);
            if !line.iter().any(over) && line[last] & beyond == 0 {
                return None;
            }
            let over = |column: &usize| {
                let word = line[column / BLOCK];
                let is_kept = word & kept_bit(column % BLOCK) != 0;
                let full = kept_below(word, pattern, *column) >= pattern.kept;
                is_kept && (full || *column >= self.columns)
            };
            (0..(last + 1) * BLOCK).find(over).map(|column| (row, column))
        };
        (0..self.rows).into_par_iter().find_map_first(in_row)
    }

    /// A row, to be read.
    #[inline]
    pub fn line(&self, row: usize) -> Line<'_> {
        let (codes, scales) = (
            self.format.code_words_per_row(self.columns),
            self.format.scale_words_per_row(self.columns),
        );
        Line {
            format: self.format,
            columns: self.columns,
            codes: &self.codes[row * codes..(row + 1) * codes],
            scales: &self.scales[row * scales..(row + 1) * scales],
        }
    }

    /// The codes of a row, of columns that are not kept too.
    fn row_codes(&self, row: usize) -> Vec<u32> {
        row_codes(self.format, self.line(row).codes, self.columns)
    }

    /// The bits of a group's scale and second number ([`Line::group`]).
    pub fn group(&self, row: usize, group: usize) -> (u16, u16) {
        self.line(row).group(group)
    }

    /// The f16 bits of a super-block's scale, and of that of its minima.
    pub fn super_scales(&self, row: usize, index: usize) -> (u16, u16) {
        self.line(row).super_scales(index)
    }

    /// Stores the f16 bits of a super-block's scale, and of that of its minima (0 where there are none).
    pub fn set_super_scales(&mut self, row: usize, index: usize, scale: u16, second: u16) {
        assert!(self.format.ty.super_block().is_some(), "only these rows have super-blocks");
        let line = row * self.format.scale_words_per_row(self.columns);
        self.scales[line + SUPER_WORDS * index] = u32::from(scale) | u32::from(second) << 16;
    }

    /// A group's scale and second number as [`WeightType::decode`](super::WeightType::decode) wants them.
    pub fn grid(&self, row: usize, group: usize) -> (f32, f32) {
        self.line(row).grid(group)
    }

    /// Whether the f16 scale of a group, or of its super-block, is below f16's normal numbers, where it loses digits, or all of
    /// them.
    pub fn scale_underflows(&self, row: usize, group: usize) -> bool {
        let scale = match self.format.ty.scale {
            Scale::None | Scale::PowerOfTwo | Scale::TwoLevel => return false,
            Scale::SuperOffset(of) | Scale::SuperSymmetric(of) => {
                self.super_scales(row, group / of.groups()).0
            }
            _ => self.group(row, group).0,
        };
        scale & 0x7c00 == 0
    }

    /// The f32 scale at the start of a row of [`Scale::TwoLevel`].
    pub fn row_scale(&self, row: usize) -> f32 {
        assert_eq!(self.format.ty.scale, Scale::TwoLevel, "only these rows have one");
        f32::from_bits(self.scales[row * self.format.scale_words_per_row(self.columns)])
    }

    /// Stores the f32 scale at the start of a row of [`Scale::TwoLevel`].
    pub fn set_row_scale(&mut self, row: usize, scale: f32) {
        assert_eq!(self.format.ty.scale, Scale::TwoLevel, "only these rows have one");
        let line = row * self.format.scale_words_per_row(self.columns);
        self.scales[line] = scale.to_bits();
    }

    /// Stores a group's scale and second number, as [`Packed::group`] gives them, at a place that holds zero bits.
    pub fn set_group(&mut self, row: usize, group: usize, scale: u16, second: u16) {
        let line = row * self.format.scale_words_per_row(self.columns);
        match self.format.ty.scale {
            Scale::None => {}
            Scale::Symmetric | Scale::Level => {
                self.scales[line + group / 2] |= u32::from(scale) << (16 * (group % 2))
            }
            Scale::ZeroPoint | Scale::Offset => {
                self.scales[line + group] = u32::from(scale) | u32::from(second) << 16
            }
            Scale::PowerOfTwo => {
                self.scales[line + group / 4] |= u32::from(scale) << (8 * (group % 4));
            }
            Scale::TwoLevel => {
                self.scales[line + 1 + group / 4] |= u32::from(scale) << (8 * (group % 4));
            }
            Scale::SuperOffset(of) => {
                let field = u32::from(scale) | u32::from(second) << (of.width() / 2);
                of.set_field(&mut self.scales[line..], group, field);
            }
            Scale::SuperSymmetric(of) => {
                of.set_field(&mut self.scales[line..], group, scale.into());
            }
        }
    }

    /// The value at a place: the definition that every kernel is checked against.
    pub fn value(&self, row: usize, column: usize) -> f32 {
        let group = if self.format.ty.has_scales() {
            column / self.format.group_columns(self.columns)
        } else {
            0
        };
        let (scale, second) = self.grid(row, group);
        self.format.ty.decode(self.code(row, column), scale, second)
    }

    /// Decodes one row into `out`, which has `columns` places: the values of [`Packed::value`], quicker.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.line(row).decode(out);
    }

    /// All values, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        let lines = values.par_chunks_exact_mut(self.columns.max(1)).enumerate();
        lines.for_each(|(row, line)| self.decode_row(row, line));
        values
    }

    /// The first place whose value is not finite: a model with such a weight computes nothing but NaN.
    pub fn first_non_finite(&self) -> Option<(usize, usize)> {
        // Of plain floats, the exponent tells: all of its bits are set. Rows end with words of zeros.
        let exponent = match self.format.ty.levels {
            Levels::F32 => Some([0x7f80_0000; 2]),
            Levels::F16 => Some([0x7c00, 0x7c00_0000]),
            Levels::Bf16 => Some([0x7f80, 0x7f80_0000]),
            _ => None,
        };
        let words = self.format.code_words_per_row(self.columns);
        let kept = self.format.kept_words_per_row(self.columns);
        let in_row = |row: usize| {
            if let Some(masks) = exponent {
                let all_set = |word: &u32| masks.iter().any(|mask| word & mask == *mask);
                if !self.codes[row * words + kept..(row + 1) * words].iter().any(all_set) {
                    return None;
                }
            }
            if self.format.ty.is_affine() {
                // Integers are finite: only the scales may not be.
                let groups = self.format.groups_per_row(self.columns);
                let group = (0..groups).find(|&g| {
                    let (scale, second) = self.grid(row, g);
                    !scale.is_finite() || !second.is_finite()
                })?;
                return Some((row, group * self.format.group_columns(self.columns)));
            }
            let broken = |c: &usize| !self.value(row, *c).is_finite();
            (0..self.columns).find(broken).map(|column| (row, column))
        };
        (0..self.rows).into_par_iter().find_map_first(in_row)
    }

    /// The rows `[start, end)` as a matrix of their own.
    pub fn slice_rows(&self, start: usize, end: usize) -> Packed {
        let (codes, scales) = (
            self.format.code_words_per_row(self.columns),
            self.format.scale_words_per_row(self.columns),
        );
        Packed {
            format: self.format,
            rows: end - start,
            columns: self.columns,
            codes: self.codes[start * codes..end * codes].to_vec(),
            scales: self.scales[start * scales..end * scales].to_vec(),
        }
    }

    /// The same matrix with row `r` taken from `order[r]`. Groups run along columns, so any format can be permuted.
    pub fn permute_rows(&self, order: &[usize]) -> Packed {
        assert_eq!(order.len(), self.rows, "a permutation names every row");
        self.pick_rows(order)
    }

    /// The rows of these numbers.
    pub fn pick_rows(&self, order: &[usize]) -> Packed {
        let (codes, scales) = (
            self.format.code_words_per_row(self.columns),
            self.format.scale_words_per_row(self.columns),
        );
        let pick = |words: &[u32], width: usize| {
            order.iter().flat_map(|&r| &words[r * width..(r + 1) * width]).copied().collect()
        };
        Packed {
            format: self.format,
            rows: order.len(),
            columns: self.columns,
            codes: pick(&self.codes, codes),
            scales: pick(&self.scales, scales),
        }
    }

    /// The columns of these numbers, with their codes and scales: groups must be picked as a whole, or be whole rows, and so
    /// must super-blocks. So must the columns that a pattern looks at together.
    pub fn pick_columns(&self, order: &[usize]) -> Packed {
        let mut picked = Self::zeros(self.format, self.rows, order.len());
        let (old, new) = (
            self.format.group_columns(self.columns).max(1),
            self.format.group_columns(order.len()).max(1),
        );
        for row in 0..self.rows {
            if self.format.ty.scale == Scale::TwoLevel {
                picked.set_row_scale(row, self.row_scale(row));
            }
            for index in 0..picked.format.super_blocks_per_row(order.len()) {
                let from = order[index * SUPER_BLOCK] / SUPER_BLOCK;
                let (scale, second) = self.super_scales(row, from);
                picked.set_super_scales(row, index, scale, second);
            }
            for (place, &column) in order.iter().enumerate() {
                if self.format.ty.has_scales() && place % new == 0 {
                    let (scale, second) = self.group(row, column / old);
                    picked.set_group(row, place / new, scale, second);
                }
                picked.set_code(row, place, self.code(row, column));
            }
        }
        picked
    }
}

/// The codes of a row, of columns that are not kept too.
pub(super) fn row_codes(format: WeightFormat, line: &[u32], columns: usize) -> Vec<u32> {
    let bits = format.ty.bits as usize;
    let Some(pattern) = format.ty.sparsity else {
        return match bits {
            9.. => (0..columns).map(|column| wide(line, bits, column)).collect(),
            _ => {
                let blocks = line.chunks(bits).flat_map(|words| block::unpack(bits, words));
                blocks.map(u32::from).take(columns).collect()
            }
        };
    };
    let mut codes = vec![format.ty.zero_code(); columns];
    let kept = format.kept_words_per_row(columns);
    let blocks = line[kept..].chunks(format.code_words_per_block());
    for (index, (codes, words)) in codes.chunks_mut(BLOCK).zip(blocks).enumerate() {
        for (place, code) in codes.iter_mut().enumerate() {
            let (is_kept, slot) = kept_slot(line, pattern, index * BLOCK + place);
            if is_kept {
                *code = slot_code(words, bits, slot);
            }
        }
    }
    codes
}

/// A code of 16 or 32 bits of a row.
fn wide(line: &[u32], bits: usize, column: usize) -> u32 {
    let word = line[column * bits / 32] >> (column * bits % 32);
    if bits == 32 { word } else { word & 0xffff }
}

/// The bit that says whether a column of a block is kept: where a block of 1-bit codes has the column's.
fn kept_bit(place: usize) -> u32 {
    1 << (8 * (place % 4) + place / 4)
}

/// How many columns are kept, by the word of their block, of those of a pattern that stand before `column`.
fn kept_below(word: u32, pattern: Sparsity, column: usize) -> u32 {
    let place = column % BLOCK;
    let first = place - place % pattern.of as usize;
    (first..place).map(|place| u32::from(word & kept_bit(place) != 0)).sum()
}

/// Whether a column is kept, and the place of its code among those of its block: of columns beyond what a pattern keeps,
/// which only a file from elsewhere can have, that of the last.
fn kept_slot(line: &[u32], pattern: Sparsity, column: usize) -> (bool, usize) {
    let (word, place) = (line[column / BLOCK], column % BLOCK);
    let rank = kept_below(word, pattern, column).min(pattern.kept - 1);
    let slot = place / pattern.of as usize * pattern.kept as usize + rank as usize;
    (word & kept_bit(place) != 0, slot)
}

/// A code of a block of which only some are kept.
fn slot_code(words: &[u32], bits: usize, slot: usize) -> u32 {
    if bits == 16 { wide(words, bits, slot) } else { block::get(bits, words, slot) }
}
