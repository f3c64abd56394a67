//! A row of a packed matrix on the host, decoded in the vectors that the machine has.
//!
//! Every product of the CPU device reads its weights through this, and a token reads all of a model's: the way of decoding is
//! chosen once a row, codes come out of their words 32 at a time, and each way is a loop that the compiler makes vectors of.

use bytemuck::cast_slice;
use half::slice::HalfFloatSliceExt;
use pulp::{Arch, Simd, WithSimd};

use super::minifloat::{self, half_value};
use super::packed::row_codes;
use super::{BLOCK, Levels, SUPER_WORDS, Scale, WeightFormat, block};

/// One row: views of its words.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// How to read the words.
    pub format: WeightFormat,
    /// Input features.
    pub columns: usize,
    /// `code_words_per_row` words.
    pub codes: &'a [u32],
    /// `scale_words_per_row` words.
    pub scales: &'a [u32],
}

impl Line<'_> {
    /// The bits of a group's scale (f16, a byte, or, where it has a super-block, an integer: signed if there are no minima) and
    /// of its second number (zero point or offset, f16; the integer of a minimum; 0 where there is none).
    #[inline(always)]
    pub fn group(&self, group: usize) -> (u16, u16) {
        match self.format.ty.scale {
            Scale::None => (0, 0),
            Scale::Symmetric | Scale::Level => {
                ((self.scales[group / 2] >> (16 * (group % 2))) as u16, 0)
            }
            Scale::ZeroPoint | Scale::Offset => {
                let word = self.scales[group];
                (word as u16, (word >> 16) as u16)
            }
            Scale::PowerOfTwo => (byte(self.scales, group).into(), 0),
            Scale::TwoLevel => (byte(&self.scales[1..], group).into(), 0),
            Scale::SuperOffset(of) => {
                let (field, half) = (of.field(self.scales, group), of.width() / 2);
                ((field & ((1 << half) - 1)) as u16, (field >> half) as u16)
            }
            Scale::SuperSymmetric(of) => (of.signed(of.field(self.scales, group)) as u16, 0),
        }
    }

    /// The f16 bits of a super-block's scale, and of that of its minima.
    #[inline(always)]
    pub fn super_scales(&self, index: usize) -> (u16, u16) {
        let word = self.scales[SUPER_WORDS * index];
        (word as u16, (word >> 16) as u16)
    }

    /// A group's scale and second number as [`WeightType::decode`](super::WeightType::decode) wants them.
    #[inline(always)]
    pub fn grid(&self, group: usize) -> (f32, f32) {
        let (scale, second) = self.group(group);
        match self.format.ty.scale {
            Scale::PowerOfTwo if scale == 0xff => (f32::NAN, 0.0),
            Scale::PowerOfTwo => (f32::powi(2.0, i32::from(scale) - 127), 0.0),
            Scale::TwoLevel => {
                let row = f32::from_bits(self.scales[0]);
                (row * minifloat::decode(scale.into(), 4, 3), 0.0)
            }
            // Products of f16 and integers of a byte: exact.
            Scale::SuperOffset(of) => {
                let (d, of_minima) = self.super_scales(group / of.groups());
                (half_value(d) * f32::from(scale), -(half_value(of_minima) * f32::from(second)))
            }
            Scale::SuperSymmetric(of) => {
                let (d, _) = self.super_scales(group / of.groups());
                (half_value(d) * f32::from(scale as i16), 0.0)
            }
            _ => (half_value(scale), half_value(second)),
        }
    }

    /// Decodes it into `out`, which has `columns` places: the values of [`Packed::value`](super::Packed::value).
    pub fn decode(&self, out: &mut [f32]) {
        let out = &mut out[..self.columns];
        let ty = self.format.ty;
        if ty.is_sparse() {
            return self.decode_kept(out);
        }
        match ty.levels {
            Levels::F32 => out.copy_from_slice(&cast_slice(self.codes)[..self.columns]),
            Levels::F16 => {
                let halves: &[half::f16] = cast_slice(self.codes);
                halves[..self.columns].convert_to_f32_slice(out);
            }
            Levels::Bf16 => {
                let halves: &[half::bf16] = cast_slice(self.codes);
                halves[..self.columns].convert_to_f32_slice(out);
            }
            _ => Arch::new().dispatch(Decoding { line: *self, out }),
        }
    }

    /// Its products with `x`, (tokens, columns), summed in f32: one a token, the same whatever tokens there are beside it. `scratch`
    /// keeps what is decoded for several.
    pub fn products(&self, x: &[f32], scratch: &mut Vec<f32>, result: &mut [f32]) {
        let arch = Arch::new();
        if let [result] = result
            && self.in_vectors()
        {
            *result = arch.dispatch(Multiplying { line: *self, x });
            return;
        }
        scratch.resize(self.columns, 0.0);
        self.decode(scratch);
        for (result, x) in result.iter_mut().zip(x.chunks_exact(self.columns.max(1))) {
            *result = arch.dispatch(Dot(x, scratch));
        }
    }

    /// Whether its codes become vectors of numbers without a table: whole numbers, in groups of half a block or more.
    #[inline(always)]
    fn in_vectors(&self) -> bool {
        let (ty, group) = (self.format.ty, self.format.group_columns(self.columns));
        let groups = group == 16 || group.is_multiple_of(BLOCK) || group >= self.columns;
        ty.is_affine() && groups && !ty.is_sparse()
    }

    /// Of a type with a pattern: the places that are not kept hold zero's code.
    fn decode_kept(&self, out: &mut [f32]) {
        let group_columns = self.format.group_columns(self.columns);
        let codes = row_codes(self.format, self.codes, self.columns);
        let groups = out.chunks_mut(group_columns).zip(codes.chunks(group_columns));
        for (group, (values, codes)) in groups.enumerate() {
            let (scale, second) = self.grid(group);
            for (value, code) in values.iter_mut().zip(codes) {
                *value = self.format.ty.decode(*code, scale, second);
            }
        }
    }

    /// Shows the weights of whole blocks in vectors: block, place of the vector in it, weights.
    #[inline(always)]
    fn vectors<S: Simd>(&self, simd: S, see: impl FnMut(usize, usize, S::f32s)) {
        match self.format.ty.bits {
            1 => self.vectors_of::<S, 1>(simd, see),
            2 => self.vectors_of::<S, 2>(simd, see),
            3 => self.vectors_of::<S, 3>(simd, see),
            4 => self.vectors_of::<S, 4>(simd, see),
            5 => self.vectors_of::<S, 5>(simd, see),
            6 => self.vectors_of::<S, 6>(simd, see),
            7 => self.vectors_of::<S, 7>(simd, see),
            _ => self.vectors_of::<S, 8>(simd, see),
        }
    }

    #[inline(always)]
    fn vectors_of<S: Simd, const BITS: usize>(
        &self,
        simd: S,
        mut see: impl FnMut(usize, usize, S::f32s),
    ) {
        let scale_kind = self.format.ty.scale;
        let middle = match scale_kind {
            Scale::Symmetric | Scale::SuperSymmetric(_) => (1u32 << (BITS - 1)) as f32,
            _ => 0.0,
        };
        let shifted = matches!(scale_kind, Scale::Offset | Scale::SuperOffset(_));
        let group_columns = self.format.group_columns(self.columns);
        let blocks = self.columns / BLOCK;
        // Grids of a block's halves; blocks that are left of the group; the next group.
        let (mut grids, mut left, mut next) = ([(0.0, 0.0); 2], 0, 0);
        for (block, words) in self.codes.as_chunks::<BITS>().0[..blocks].iter().enumerate() {
            if group_columns == BLOCK / 2 {
                grids = [self.grid(2 * block), self.grid(2 * block + 1)];
                left = 1;
            } else if left == 0 {
                grids = [self.grid(next); 2];
                (left, next) = (group_columns.div_ceil(BLOCK), next + 1);
            }
            left -= 1;
            for (half, (scale, second)) in grids.into_iter().enumerate() {
                // s (L - z) + m with z or m 0: neither changes what f32 makes of the other's form.
                let (zero, offset) = if shifted { (0.0, second) } else { (middle + second, 0.0) };
                let scale = simd.splat_f32s(scale);
                let (zero, offset) = (simd.splat_f32s(zero), simd.splat_f32s(offset));
                // As many as are known when it is compiled, so that sums stay in registers.
                for place in 0..BLOCK / 2 / S::F32_LANES {
                    let place = half * (BLOCK / 2 / S::F32_LANES) + place;
                    let code = codes_of::<S, BITS>(simd, words, place);
                    let value = match shifted {
                        true => simd.add_f32s(simd.mul_f32s(scale, code), offset),
                        false => simd.mul_f32s(scale, simd.sub_f32s(code, zero)),
                    };
                    see(block, place, value);
                }
            }
        }
    }

    /// The weights behind the last whole block, as many as there are.
    #[inline(always)]
    fn last(&self) -> [f32; BLOCK] {
        let (bits, mut values) = (self.format.ty.bits as usize, [0.0; BLOCK]);
        let block = self.columns / BLOCK;
        let codes = block::unpack(bits, &self.codes[block * bits..(block + 1) * bits]);
        self.pieces(
            block,
            &mut values[..self.columns % BLOCK],
            &codes,
            &|code, (scale, second)| self.format.ty.decode(code.into(), scale, second),
        );
        values
    }

    /// The values of codes of a type whose numbers are looked up, or whose groups are odd, in order.
    #[inline(always)]
    fn decode_blocks<const BITS: usize>(&self, out: &mut [f32]) {
        let ty = self.format.ty;
        let middle = (1u32 << (BITS - 1)) as f32;
        match ty.scale {
            Scale::Symmetric | Scale::SuperSymmetric(_) if ty.is_affine() => {
                self.values::<BITS>(out, |code, (scale, _)| scale * (f32::from(code) - middle));
            }
            Scale::ZeroPoint => {
                self.values::<BITS>(out, |code, (scale, zero)| scale * (f32::from(code) - zero));
            }
            Scale::Offset | Scale::SuperOffset(_) => {
                self.values::<BITS>(out, |code, (scale, offset)| scale * f32::from(code) + offset);
            }
            scale => {
                // A table of what the codes stand for is quicker made than each is worked out.
                let mut levels = [0.0f32; 256];
                for (code, level) in levels[..1 << BITS].iter_mut().enumerate() {
                    *level = ty.decode(code as u32, 1.0, 0.0);
                }
                if scale == Scale::None {
                    return self.values::<BITS>(out, |code, _| levels[usize::from(code)]);
                }
                self.values::<BITS>(out, |code, (scale, _)| scale * levels[usize::from(code)]);
            }
        }
    }

    /// `value` of each code and its group's grid, in order.
    #[inline(always)]
    fn values<const BITS: usize>(&self, out: &mut [f32], value: impl Fn(u8, (f32, f32)) -> f32) {
        let blocks = out.chunks_mut(BLOCK).zip(self.codes.as_chunks::<BITS>().0);
        for (block, (values, words)) in blocks.enumerate() {
            self.pieces(block, values, &block::unpack(BITS, words), &value);
        }
    }

    /// Values of a block whose codes may be of several groups.
    #[inline(always)]
    fn pieces(
        &self,
        block: usize,
        values: &mut [f32],
        codes: &[u8; BLOCK],
        value: &impl Fn(u8, (f32, f32)) -> f32,
    ) {
        let group_columns = self.format.group_columns(self.columns);
        let (first, mut done) = (block * BLOCK, 0);
        while done < values.len() {
            let group = (first + done) / group_columns;
            let end = ((group + 1) * group_columns - first).min(values.len());
            let grid = self.grid(group);
            for (value_of, code) in values[done..end].iter_mut().zip(&codes[done..end]) {
                *value_of = value(*code, grid);
            }
            done = end;
        }
    }
}

/// How far up in its word each code of a block has its part of so many bits (`block` tells the layout).
const fn shifts(part: usize) -> [u32; BLOCK] {
    let mut shifts = [0; BLOCK];
    let mut code = 0;
    while code < BLOCK {
        shifts[code] = (8 * (code % 4) + part * (code / 4 % (8 / part))) as u32;
        code += 1;
    }
    shifts
}

/// Places of a block.
static PLACES: [u32; BLOCK] = {
    let mut places = [0; BLOCK];
    let mut place = 0;
    while place < BLOCK {
        places[place] = place as u32;
        place += 1;
    }
    places
};

static SHIFTS_OF_8: [u32; BLOCK] = shifts(8);
static SHIFTS_OF_4: [u32; BLOCK] = shifts(4);
static SHIFTS_OF_2: [u32; BLOCK] = shifts(2);
static SHIFTS_OF_1: [u32; BLOCK] = shifts(1);

/// A vector of a block's codes as numbers: under the exponent of 2^23 a code is the last digits, so that taking away 2^23 leaves it.
#[inline(always)]
fn codes_of<S: Simd, const BITS: usize>(simd: S, words: &[u32; BITS], place: usize) -> S::f32s {
    const EXPONENT: f32 = (1 << 23) as f32;
    let mut bits = simd.splat_u32s(EXPONENT.to_bits());
    let mut low = 0;
    // Written out, so that every width is a constant.
    if BITS & 8 != 0 {
        let part = part_of(simd, words, 8, &SHIFTS_OF_8, place);
        (bits, low) = (simd.or_u32s(bits, part), 8);
    }
    if BITS & 4 != 0 {
        let part = part_of(simd, &words[low..], 4, &SHIFTS_OF_4, place);
        (bits, low) = (simd.or_u32s(bits, part), low + 4);
    }
    if BITS & 2 != 0 {
        let part = part_of(simd, &words[low..], 2, &SHIFTS_OF_2, place);
        let part = simd.wrapping_dyn_shl_u32s(part, simd.splat_u32s(low as u32));
        (bits, low) = (simd.or_u32s(bits, part), low + 2);
    }
    if BITS & 1 != 0 {
        let part = part_of(simd, &words[low..], 1, &SHIFTS_OF_1, place);
        let part = simd.wrapping_dyn_shl_u32s(part, simd.splat_u32s(low as u32));
        bits = simd.or_u32s(bits, part);
    }
    simd.sub_f32s(simd.transmute_f32s_u32s(bits), simd.splat_f32s(EXPONENT))
}

/// A vector of a part of `part` bits, which stands in the first `part` of the words.
#[inline(always)]
fn part_of<S: Simd>(
    simd: S,
    words: &[u32],
    part: usize,
    shifts: &'static [u32; BLOCK],
    place: usize,
) -> S::u32s {
    let (lanes, a_word) = (S::U32_LANES, BLOCK / part);
    let words = if lanes <= a_word {
        simd.splat_u32s(words[place * lanes / a_word])
    } else if lanes == 2 * a_word {
        // Wider vectors are of two words.
        let [low, high] = [0, 1].map(|half| words[(2 * place + half) * lanes / 2 / a_word]);
        let place_in_vector = S::as_simd_u32s(&PLACES).0[0];
        let first = simd.less_than_u32s(place_in_vector, simd.splat_u32s(lanes as u32 / 2));
        simd.select_u32s(first, simd.splat_u32s(low), simd.splat_u32s(high))
    } else {
        let each: [u32; BLOCK] = std::array::from_fn(|code| words[code / a_word]);
        S::as_simd_u32s(&each).0[place]
    };
    let shift = S::as_simd_u32s(shifts).0[place];
    let field = simd.wrapping_dyn_shr_u32s(words, shift);
    simd.and_u32s(field, simd.splat_u32s((1 << part) - 1))
}

/// The decoding of a row's codes. A type of its own, because what the compiler is to make vectors of has to end up in the function
/// that asks for them.
struct Decoding<'a> {
    line: Line<'a>,
    out: &'a mut [f32],
}

impl WithSimd for Decoding<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { line, out } = self;
        if line.in_vectors() {
            let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
            line.vectors(simd, |block, place, weights| {
                S::as_mut_simd_f32s(&mut blocks[block]).0[place] = weights;
            });
            if !rest.is_empty() {
                rest.copy_from_slice(&line.last()[..rest.len()]);
            }
            return;
        }
        match line.format.ty.bits {
            1 => line.decode_blocks::<1>(out),
            2 => line.decode_blocks::<2>(out),
            3 => line.decode_blocks::<3>(out),
            4 => line.decode_blocks::<4>(out),
            5 => line.decode_blocks::<5>(out),
            6 => line.decode_blocks::<6>(out),
            7 => line.decode_blocks::<7>(out),
            8 => line.decode_blocks::<8>(out),
            bits => unreachable!("a type of {bits} bits is a float"),
        }
    }
}

/// The product of a row's weights, as they are decoded, with values.
struct Multiplying<'a> {
    line: Line<'a>,
    x: &'a [f32],
}

impl WithSimd for Multiplying<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (blocks, rest) = self.x.as_chunks::<BLOCK>();
        let mut sums = [simd.splat_f32s(0.0); 4];
        self.line.vectors(simd, |block, place, weights| {
            let x = S::as_simd_f32s(&blocks[block]).0[place];
            sums[place % 4] = simd.mul_add_e_f32s(weights, x, sums[place % 4]);
        });
        let last = if rest.is_empty() { [0.0; BLOCK] } else { self.line.last() };
        total(simd, sums, &last, rest)
    }
}

/// A dot product in f32, summed as [`Multiplying`] does.
struct Dot<'a>(&'a [f32], &'a [f32]);

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (a, a_rest) = self.0.as_chunks::<BLOCK>();
        let (b, b_rest) = self.1.as_chunks::<BLOCK>();
        let mut sums = [simd.splat_f32s(0.0); 4];
        for (a, b) in a.iter().zip(b) {
            let (a, b) = (S::as_simd_f32s(a).0, S::as_simd_f32s(b).0);
            for place in 0..BLOCK / S::F32_LANES {
                sums[place % 4] = simd.mul_add_e_f32s(b[place], a[place], sums[place % 4]);
            }
        }
        total(simd, sums, b_rest, a_rest)
    }
}

/// Running sums and the products behind the last whole block, added up.
#[inline(always)]
fn total<S: Simd>(simd: S, sums: [S::f32s; 4], weights: &[f32], x: &[f32]) -> f32 {
    let low = simd.add_f32s(sums[0], sums[1]);
    let all = simd.reduce_sum_f32s(simd.add_f32s(low, simd.add_f32s(sums[2], sums[3])));
    all + weights.iter().zip(x).map(|(weight, x)| weight * x).sum::<f32>()
}

/// A byte of a string of words.
#[inline(always)]
fn byte(words: &[u32], index: usize) -> u8 {
    (words[index / 4] >> (8 * (index % 4))) as u8
}
