//! `matmul/part`: a product of parts of f32 matrices, result = base + factor a b^T, each part with a place where it begins and
//! steps along its rows and depths. What goes through a matrix in blocks of columns (a Cholesky factor, GPTQ) cuts its operands
//! out of larger matrices, along rows or along columns. Without depth it copies a part.

use crate::kernels::prelude::*;

/// Rows and columns of one workgroup's tile, as in the shader.
const TILE: u32 = 64;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        depth: u32,
        a_start: u32,
        a_row: u32,
        a_depth: u32,
        b_start: u32,
        b_column: u32,
        b_depth: u32,
        base_start: u32,
        base_row: u32,
        result_start: u32,
        result_row: u32,
        factor: f32,
        /// 1: there is a base.
        with_base: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/part",
    source: include_str!("../../../shaders/matmul/part.wgsl"),
    bindings: &[
        binding("a", Access::Read, Element::Is(DType::F32)),
        binding("b", Access::Read, Element::Is(DType::F32)),
        binding("base", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || vec![Variant::BASELINE],
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.rows.div_ceil(TILE) as usize * p.columns.div_ceil(TILE) as usize)
    },
    cost: |args| {
        let p: Params = args.parameters();
        let [rows, columns, depth] = [p.rows, p.columns, p.depth].map(f64::from);
        let results = rows * columns;
        Cost::new(2.0 * results * depth, 4.0 * ((rows + columns) * depth + 2.0 * results))
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// A part of a matrix: its first element, and how far it is from one row to the next and from one column to the next.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The matrix, f32.
    pub of: &'a Tensor,
    /// Its first element's place in it.
    pub start: usize,
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one column to the next.
    pub column: usize,
}

impl<'a> Part<'a> {
    /// From row and column `at` on, of a matrix with so many columns.
    pub fn from(of: &'a Tensor, pitch: usize, at: (usize, usize)) -> Self {
        Self { of, start: at.0 * pitch + at.1, row: pitch, column: 1 }
    }

    /// Its transpose.
    pub fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

/// result = base + factor a b^T over (rows, columns), with a (rows, depth) and b (columns, depth). Rows of `base` and `result` are
/// contiguous. `result` shares no tensor with the others.
pub fn part(
    device: &Device,
    (rows, columns, depth): (usize, usize, usize),
    (a, b, factor): (Part<'_>, Part<'_>, f32),
    base: Option<Part<'_>>,
    result: Part<'_>,
) -> Result<()> {
    assert!(result.column == 1 && base.is_none_or(|base| base.column == 1), "rows are contiguous");
    let each = (2 * columns * depth.max(1)) as f64;
    let step = ((device.call_limit().operations / each) as usize)
        .clamp(TILE as usize, rows.max(TILE as usize))
        .next_multiple_of(TILE as usize);
    for first in (0..rows).step_by(step) {
        let params = Params {
            rows: step.min(rows - first) as u32,
            columns: columns as u32,
            depth: depth as u32,
            a_start: (a.start + first * a.row) as u32,
            a_row: a.row as u32,
            a_depth: a.column as u32,
            b_start: b.start as u32,
            b_column: b.row as u32,
            b_depth: b.column as u32,
            base_start: base.map_or(0, |base| base.start + first * base.row) as u32,
            base_row: base.map_or(0, |base| base.row) as u32,
            result_start: (result.start + first * result.row) as u32,
            result_row: result.row as u32,
            factor,
            with_base: u32::from(base.is_some()),
        };
        let under = base.map_or(a.of, |base| base.of);
        device.call(&KERNEL, Variant::BASELINE, &params, &[a.of, b.of, under, result.of])?;
    }
    Ok(())
}

/// A copy of (rows, columns) of `from` in `result`.
pub fn copy(device: &Device, size: (usize, usize), from: Part<'_>, result: Part<'_>) -> Result<()> {
    part(device, (size.0, size.1, 0), (from, from, 0.0), Some(from), result)
}

/// Of each result, row by row: its place, and the sum of `add` over its products.
fn sums<T: Copy + Default + Send>(
    args: &Args<'_>,
    add: impl Fn(&mut T, f32, f32) + Sync,
) -> Vec<(usize, usize, T)> {
    let p: Params = args.parameters();
    let [a, b] = [0, 1].map(|binding| args.tensors[binding].to_f32());
    let at = |start: u32, line: u32, row: usize, step: u32, k: usize| {
        start as usize + row * line as usize + k * step as usize
    };
    let of = |row: usize| {
        let (a, b, add) = (&a, &b, &add);
        (0..p.columns as usize).map(move |column| {
            let mut sum = T::default();
            for k in 0..p.depth as usize {
                let (i, j) = (
                    at(p.a_start, p.a_row, row, p.a_depth, k),
                    at(p.b_start, p.b_column, column, p.b_depth, k),
                );
                add(&mut sum, a[i], b[j]);
            }
            (row, column, sum)
        })
    };
    (0..p.rows as usize).into_par_iter().flat_map_iter(of).collect()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let found = sums(args, |sum: &mut (f64, f64), a, b| {
        let product = f64::from(a) * f64::from(b);
        *sum = (sum.0 + product, sum.1 + product.abs());
    });
    // What it does not write stays.
    let mut expected = Expected::exact(args.tensors[3].to_f64());
    let relative = gamma(p.depth as usize + 2);
    for (row, column, (sum, magnitude)) in found {
        let base = match p.with_base {
            1 => {
                let place = p.base_start as usize + row * p.base_row as usize + column;
                args.tensors[2].get(place)
            }
            _ => 0.0,
        };
        let factor = f64::from(p.factor);
        let value = base + factor * sum;
        let bound = relative * (magnitude * factor.abs() + base.abs()) + storing(DType::F32, value);
        let place = p.result_start as usize + row * p.result_row as usize + column;
        expected.put(place, [(value, bound)]);
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let found = sums(args, |sum: &mut f32, a, b| *sum += a * b);
    let mut line = Vec::with_capacity(p.columns as usize);
    for (row, column, sum) in found {
        let mut value = p.factor * sum;
        if p.with_base == 1 {
            let place = p.base_start as usize + row * p.base_row as usize + column;
            value += args.tensors[2].get(place) as f32;
        }
        line.push(value);
        if column + 1 == p.columns as usize {
            outputs.store(0, p.result_start as usize + row * p.result_row as usize, &line);
            line.clear();
        }
    }
}

/// How the parts of a case lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// Along their rows.
    Along,
    /// Both transposed.
    Across,
    /// One of each, with a base, in a part of the result.
    Cut,
    /// Nothing but the base.
    Copied,
}

fn case(rows: usize, columns: usize, depth: usize, lie: Lie) -> Case {
    let depth = if lie == Lie::Copied { 0 } else { depth };
    let label = format!("rows={rows},columns={columns},depth={depth},{lie:?}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(23);
        // A little larger than what is read of them.
        let mut matrix = |a: usize, b: usize| {
            let shape = [a + 3, b + 5];
            (
                shape[1],
                HostTensor::from_f32(DType::F32, &shape, &random.values(shape[0] * shape[1], 1.0)),
            )
        };
        let across = [lie == Lie::Across, lie != Lie::Along];
        let of = |across: bool, lines: usize| match across {
            true => (depth, lines),
            false => (lines, depth),
        };
        let (of_a, of_b) = (of(across[0], rows), of(across[1], columns));
        let (a_pitch, a) = matrix(of_a.0, of_a.1);
        let (b_pitch, b) = matrix(of_b.0, of_b.1);
        let (pitch, base) = matrix(rows, columns);
        let (_, result) = matrix(rows, columns);
        let steps = |across: bool, pitch: usize| match across {
            true => (1, pitch as u32),
            false => (pitch as u32, 1),
        };
        let ((a_row, a_depth), (b_column, b_depth)) =
            (steps(across[0], a_pitch), steps(across[1], b_pitch));
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            depth: depth as u32,
            a_start: 2 * a_pitch as u32 + 1,
            a_row,
            a_depth,
            b_start: b_pitch as u32 + 4,
            b_column,
            b_depth,
            base_start: pitch as u32 + 2,
            base_row: pitch as u32,
            result_start: 3 * pitch as u32 + 5 - 5 * u32::from(lie == Lie::Along),
            result_row: pitch as u32,
            factor: if lie == Lie::Along { 1.0 } else { -1.0 },
            with_base: u32::from(matches!(lie, Lie::Cut | Lie::Copied)),
        };
        params.case(vec![a, b, base, result])
    })
}

fn random(sizes: &Sizes) -> Case {
    let lie = [Lie::Along, Lie::Across, Lie::Cut, Lie::Copied][sizes.between(3, 0, 3)];
    let shape = [0, 1, 2].map(|place| sizes.between(place, 1, 150));
    case(shape[0], shape[1], shape[2], lie)
}

fn cases() -> Vec<Case> {
    vec![
        case(65, 97, 67, Lie::Along),
        case(64, 129, 64, Lie::Across),
        case(129, 64, 16, Lie::Cut),
        case(1, 1, 1, Lie::Cut),
        case(70, 33, 0, Lie::Copied),
        case(33, 40, 20, Lie::Along).with(Poison::Infinity),
        case(33, 40, 20, Lie::Cut).with(Poison::NaN),
        case(33, 40, 20, Lie::Across).with(Poison::Zeros),
        case(4096, 256, 4096, Lie::Along).bench(),
        case(4096, 256, 4096, Lie::Across).bench(),
    ]
}
