//! `matmul/gram`: second moments of activations, result[i, j] = sum_t x[t, i] * x[t, j], the symmetric X^T X, half the Hessian
//! of a linear layer's squared error (Frantar and Alistarh 2023, SparseGPT, arXiv 2301.00774, section 3). Half of the general
//! product: only tiles on and above the diagonal are computed, and whoever reads the sum mirrors it ([`read`]).
//!
//! Sums are of [`SUMMED`] tokens, cut the same on every device whatever its speed, and each is added to the result as one: a
//! product is never rounded against the sum of a whole text. Where a device has matrix units, f16 activations go through the
//! general product ([`backward::weight`](super::backward::weight)), which computes both halves.

use super::{EPILOGUE_ADD, backward, merge};
use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::tensor::WeightFormat;

params! {
    struct Params {
        width: u32,
        /// The tokens of all parts, and the first of them.
        tokens: u32,
        token_start: u32,
        /// Sums that stand beside each other in the result, and the tokens of one; the last may have fewer.
        parts: u32,
        part_tokens: u32,
        /// The places in the order of tiles that this call computes.
        first_slot: u32,
        slots: u32,
        /// 1: the sums are added to what stands in the result.
        accumulate: u32,
    }
}

/// Tiles of 64 and of 128 rows and columns: a workgroup's.
const TILES: [&[(&str, u32)]; 2] = [&[("EDGE", 64), ("QUADS", 1)], &[("EDGE", 128), ("QUADS", 2)]];

/// Rows of tiles that are worked on together, as in the shader.
const BAND: usize = 8;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/gram",
    source: include_str!("../../../shaders/matmul/gram.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let types = [DType::F32, DType::F16];
        types.iter().flat_map(|dtype| TILES.map(|tile| variant(*dtype, tile))).collect()
    },
    groups,
    cost,
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

fn variant(dtype: DType, constants: &'static [(&'static str, u32)]) -> Variant {
    Variant { constants, ..Variant::typed(dtype, DType::F32) }
}

/// Tokens of one sum.
const SUMMED: usize = 2048;

/// Tokens of a part at least, so that what it costs beside its products stays small; whole steps of the shader.
const LEAST: usize = 256;

/// Workgroups that fill a large device. A narrow result has fewer tiles: then parts of the tokens are summed beside each other.
const ENOUGH: usize = 128;

/// Adds X^T X of `x`, f32 or f16 (tokens, width), to `result`, f32 (width, width), or writes it there. Only what stands on or
/// above the diagonal is a result: what is below it may be anything, until [`read`] mirrors it.
pub fn gram(device: &Device, x: &Tensor, result: &Tensor, accumulate: bool) -> Result<()> {
    let width = result.shape()[0];
    assert_eq!(result.len(), width * width, "a width by its width");
    let tokens = x.len() / width;
    if x.dtype() == DType::F16 && device.capabilities().cooperative_matrix > 0 {
        return backward::weight(device, x, x, &mut None, result, accumulate);
    }
    let variant = choice(device, x.dtype(), width);
    let edge = variant.constant("EDGE") as usize;
    let all = slots(width, edge);
    for start in (0..tokens).step_by(SUMMED) {
        let count = SUMMED.min(tokens - start);
        let parts = parts(all, count);
        let part_tokens = count.div_ceil(parts).next_multiple_of(LEAST).min(count);
        let parts = count.div_ceil(part_tokens);
        let accumulate = accumulate || start > 0;
        let sums = match parts {
            1 => result.clone(),
            _ => device.allocate(DType::F32, &[parts, width, width], "sums of parts")?,
        };
        let products = 2.0 * (edge * edge * count) as f64;
        let step = (device.call_limit().operations / products).max(1.0) as usize;
        for first in (0..all).step_by(step) {
            let params = Params {
                width: width as u32,
                tokens: count as u32,
                token_start: start as u32,
                parts: parts as u32,
                part_tokens: part_tokens as u32,
                first_slot: first as u32,
                slots: step.min(all - first) as u32,
                accumulate: u32::from(accumulate && parts == 1),
            };
            device.call(&KERNEL, variant.clone(), &params, &[x, &sums])?;
        }
        if parts > 1 {
            merged(device, &sums, result, accumulate)?;
        }
    }
    Ok(())
}

/// How the moments of activations of a type are computed: decided by what the device is, never by how quick it was.
fn choice(device: &Device, dtype: DType, width: usize) -> Variant {
    // A processor's core keeps a small tile beside it; a large one would be mostly empty.
    let small = width <= 256 || device.runner().is_none();
    variant(dtype, TILES[usize::from(!small)])
}

/// Parts that so many tokens are summed in, of a result of so many tiles.
fn parts(tiles: usize, tokens: usize) -> usize {
    (ENOUGH / tiles).clamp(1, tokens.div_ceil(LEAST).max(1))
}

/// Adds the parts' sums in order, and them to the result or in its place.
fn merged(device: &Device, sums: &Tensor, result: &Tensor, accumulate: bool) -> Result<()> {
    let (parts, width) = (sums.shape()[0], sums.shape()[1]);
    let unused = device.allocate(DType::F32, &[1], "an unused bias")?;
    let params = super::Params {
        rows: width as u32,
        row_start: 0,
        columns: 0,
        tokens: width as u32,
        token_start: 0,
        result_start: 0,
        out_stride: width as u32,
        out_offset: 0,
        epilogue: if accumulate { EPILOGUE_ADD } else { 0 },
        splits: parts as u32,
        second: 0,
        third: 0,
        layout: Layout::new(WeightFormat::f32(), 1),
    };
    device.call(&merge::KERNEL, merge::variant(DType::F32), &params, &[sums, &unused, result])
}

/// The symmetric matrix that [`gram`] has summed, f32 (width, width), with both its halves.
pub fn read(device: &Device, result: &Tensor) -> Result<HostTensor> {
    let mut sums = device.read(result)?;
    mirror(&mut sums.words, result.shape()[0]);
    Ok(sums)
}

/// Copies what stands above the diagonal of a matrix below it.
fn mirror(words: &mut [u32], width: usize) {
    // Rows that are written beside each other, and those of them by one thread: as many words as a line of memory has.
    const BLOCK: usize = 256;
    const LINES: usize = 16;
    for first in (0..width).step_by(BLOCK) {
        let (above, rest) = words.split_at_mut(first * width);
        let rows = BLOCK.min(width - first);
        let block = &mut rest[..rows * width];
        block.par_chunks_mut(LINES * width).enumerate().for_each(|(index, lines)| {
            for (column, above) in above.chunks_exact(width).enumerate() {
                let values = &above[first + index * LINES..];
                for (line, value) in lines.chunks_exact_mut(width).zip(values) {
                    line[column] = *value;
                }
            }
        });
        for row in 0..rows {
            for column in row + 1..rows {
                block[column * width + first + row] = block[row * width + first + column];
            }
        }
    }
}

/// Places in the order of tiles, as the shader counts them.
fn slots(width: usize, edge: usize) -> usize {
    let tiles = width.div_ceil(edge);
    (0..tiles).step_by(BAND).map(|start| BAND.min(tiles - start) * (tiles - start)).sum()
}

/// Row and column of the tile at a slot; `None` where it would stand below the diagonal.
fn tile(slot: usize, width: usize, edge: usize) -> Option<(usize, usize)> {
    let tiles = width.div_ceil(edge);
    let mut left = slot;
    for start in (0..tiles).step_by(BAND) {
        let height = BAND.min(tiles - start);
        if left < height * (tiles - start) {
            let (row, column) = (start + left % height, start + left / height);
            return (row <= column).then_some((row, column));
        }
        left -= height * (tiles - start);
    }
    None
}

fn groups(args: &Args<'_>) -> glam::UVec3 {
    let p: Params = args.parameters();
    fold(p.slots as usize * p.parts as usize)
}

/// The operations that are needed: a multiplication and an addition for each pair of columns.
fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let (width, tokens) = (f64::from(p.width), f64::from(p.tokens));
    let all = slots(p.width as usize, args.variant.constant("EDGE") as usize);
    let share = f64::from(p.slots) / all as f64;
    let pairs = width * (width + 1.0) / 2.0 * share;
    let results = f64::from(4 * p.parts * (1 + p.accumulate)) * pairs;
    let x = args.tensors[0].dtype.size() as f64 * tokens * width;
    Cost::new(2.0 * pairs * tokens, x + results)
}

/// A tile's first row and column, its rows and columns, and their sums.
type Block<T> = (usize, [usize; 4], Vec<T>);

/// The sums of every tile of a call, each product given to `add`; with the place of each part's result.
fn blocks<T: Copy + Default + Send + Sync>(
    args: &Args<'_>,
    add: impl Fn(&mut T, f64, f64) + Sync,
) -> Vec<Block<T>> {
    let p: Params = args.parameters();
    let (width, edge) = (p.width as usize, args.variant.constant("EDGE") as usize);
    let start = p.token_start as usize;
    let x = args.tensors[0].load(start * width, p.tokens as usize * width);
    let pieces: Vec<(usize, usize)> = (0..p.parts as usize)
        .flat_map(|part| {
            (0..p.slots as usize).map(move |slot| (part, p.first_slot as usize + slot))
        })
        .collect();
    let block = |(part, slot): (usize, usize)| {
        let (row, column) = tile(slot, width, edge)?;
        let (row, column) = (row * edge, column * edge);
        let (rows, columns) = (edge.min(width - row), edge.min(width - column));
        let part_tokens = p.part_tokens as usize;
        let tokens = x.chunks_exact(width).skip(part * part_tokens).take(part_tokens);
        let mut sums = vec![T::default(); rows * columns];
        for line in tokens {
            for (sums, a) in sums.chunks_exact_mut(columns).zip(&line[row..row + rows]) {
                for (sum, b) in sums.iter_mut().zip(&line[column..column + columns]) {
                    add(sum, f64::from(*a), f64::from(*b));
                }
            }
        }
        Some((part * width * width, [row, column, rows, columns], sums))
    };
    pieces.into_par_iter().filter_map(block).collect()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let width = p.width as usize;
    let relative = gamma(p.part_tokens as usize + 1);
    let mut expected = Expected::exact(args.tensors[1].to_f64());
    let sums = blocks(args, |sum: &mut (f64, f64), a, b| {
        let product = a * b;
        *sum = (sum.0 + product, sum.1 + product.abs());
    });
    for (base, [row, column, _, columns], sums) in sums {
        for (line, sums) in (row..).zip(sums.chunks_exact(columns)) {
            let first = base + line * width + column;
            for (place, (sum, magnitude)) in (first..).zip(sums) {
                let before = if p.accumulate == 1 { expected.values[place] } else { 0.0 };
                let value = sum + before;
                expected.values[place] = value;
                expected.bounds[place] =
                    relative * (magnitude + before.abs()) + storing(DType::F32, value);
            }
        }
    }
    vec![expected]
}

/// Summed in f64.
fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let width = p.width as usize;
    for (base, [row, column, _, columns], sums) in blocks(args, |sum: &mut f64, a, b| *sum += a * b)
    {
        for (line, sums) in (row..).zip(sums.chunks_exact(columns)) {
            let first = base + line * width + column;
            let mut values: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
            if p.accumulate == 1 {
                let before = outputs.load(0, first, columns);
                values.iter_mut().zip(before).for_each(|(value, before)| *value += before);
            }
            outputs.store(0, first, &values);
        }
    }
}

/// What is special about a case.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Note {
    Nothing,
    /// The sums are added to what stands there.
    Accumulate,
    /// The call covers a part of the tokens; what is outside must not count.
    Window,
    /// The call covers a part of the tiles; what is outside must stay.
    Slots,
    /// So many tokens a sum.
    Parts(usize),
}

fn case(width: usize, tokens: usize, note: Note) -> Case {
    let label = match note {
        Note::Nothing => format!("width={width},tokens={tokens}"),
        Note::Parts(tokens_each) => format!("width={width},tokens={tokens},part={tokens_each}"),
        note => format!("width={width},tokens={tokens},{note:?}").to_lowercase(),
    };
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(71);
        let outside = if note == Note::Window { 3 } else { 0 };
        let all = outside + tokens + outside;
        let places = slots(width, variant.constant("EDGE") as usize);
        let part_tokens = match note {
            Note::Parts(part) => part,
            _ => tokens,
        };
        let parts = tokens.div_ceil(part_tokens);
        let (first, count) = match note {
            Note::Slots if places > 2 => (1, places - 2),
            _ => (0, places),
        };
        let params = Params {
            width: width as u32,
            tokens: tokens as u32,
            token_start: outside as u32,
            parts: parts as u32,
            part_tokens: part_tokens as u32,
            first_slot: first as u32,
            slots: count as u32,
            accumulate: u32::from(note == Note::Accumulate),
        };
        let x = random.values(all * width, 1.0);
        let before = random.values(parts * width * width, 1.0);
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[all, width], &x),
            HostTensor::from_f32(DType::F32, &[parts, width, width], &before),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (width, tokens) = (sizes.between(0, 1, 300), sizes.between(1, 1, 100));
    let notes = [
        Note::Nothing,
        Note::Accumulate,
        Note::Window,
        Note::Slots,
        Note::Parts(tokens.div_ceil(3)),
    ];
    case(width, tokens, notes[sizes.between(2, 0, 4)])
}

/// Calls of calibration: of SmolLM2-135M, and of a Llama-3.1-8B's attention and feed-forward.
fn calibration() -> [Case; 3] {
    let of = |width, note| {
        let tiles_of_128 = |variant: &Variant| variant.constant("EDGE") == 128;
        case(width, SUMMED, note).bench().only(tiles_of_128)
    };
    [of(576, Note::Parts(LEAST)), of(4096, Note::Nothing), of(14_336, Note::Nothing)]
}

fn cases() -> Vec<Case> {
    let small = |variant: &Variant| variant.constant("EDGE") == 64;
    let poisoned = |poison| case(70, 20, Note::Nothing).with(poison);
    let mut cases = vec![
        case(97, 67, Note::Nothing),
        case(1, 1, Note::Nothing),
        case(64, 16, Note::Nothing),
        case(128, 33, Note::Nothing),
        case(259, 1, Note::Nothing),
        case(66, 17, Note::Accumulate),
        case(130, 20, Note::Window),
        case(193, 5, Note::Slots),
        case(67, 40, Note::Parts(16)),
        // Tiles of three bands.
        case(1030, 1, Note::Nothing).only(small),
        poisoned(Poison::Infinity),
        poisoned(Poison::NaN),
        poisoned(Poison::Zeros),
    ];
    cases.extend(calibration());
    cases
}
