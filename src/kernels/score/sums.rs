//! `score/sums`: sums of activations by channel, result[c] = sum_t f(x[t, c]) with f by a [`Term`]. Added in a fixed order.

use super::columns::COLUMNS;
use super::element::SUMMED_ROWS;
use super::fisher::fisher;
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        columns: u32,
        /// The first of the tokens that this call sums.
        token_start: u32,
        /// 1: it is added to what stands in the result.
        accumulate: u32,
    }
}

/// What an activation counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// x: over the number of tokens the mean.
    Value,
    /// |x|: what AWQ scales channels by (Lin et al. 2023, arXiv 2306.00978, section 3.2).
    Magnitude,
    /// x²: before its root the norm by which Wanda weighs a weight's columns (Sun et al. 2023, arXiv 2306.11695, section 3).
    Square,
}

impl Term {
    /// All of them.
    pub const ALL: [Term; 3] = [Term::Value, Term::Magnitude, Term::Square];

    fn variant(self, dtype: DType) -> Variant {
        Variant {
            constants: match self {
                Term::Value => &[("TERM", 0)],
                Term::Magnitude => &[("TERM", 1)],
                Term::Square => &[("TERM", 2)],
            },
            ..Variant::typed(dtype, DType::F32)
        }
    }

    fn of(variant: &Variant) -> Term {
        Term::ALL[variant.constant("TERM") as usize]
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "score/sums",
    source: include_str!("../../../shaders/score/sums.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let terms = |dtype| Term::ALL.map(|term| term.variant(dtype));
        [DType::F32, DType::F16].into_iter().flat_map(terms).collect()
    },
    groups: |args| fold((args.parameters::<Params>().columns as usize).div_ceil(COLUMNS)),
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.tokens) * f64::from(p.columns);
        Cost::new(2.0 * values, values * args.tensors[0].dtype.size() as f64)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Adds the sum of each column of `x`, f32 or f16 (tokens, columns), to `result`, f32 (columns), or writes it there.
pub fn sums(
    device: &Device,
    term: Term,
    x: &Tensor,
    result: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let all = 0..x.len() / result.len();
    sums_of(device, (term, x), all, result, accumulate)
}

/// The importance of channels by how large they are on average over a sequence: adds, for each column of `x`, f32 or f16
/// (sequences * length, columns), the sum over the sequences of (mean over its positions of |x|)² to `result`, f32 (columns), or
/// writes it there. The root of it over all batches is Minitron's score (Muralidharan et al. 2024, arXiv 2407.14679, section
/// 2.2: the mean over positions, the L2 norm over samples).
pub fn sequence_magnitudes(
    device: &Device,
    x: &Tensor,
    length: usize,
    result: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let tokens = x.len() / result.len();
    assert!(length > 0 && tokens.is_multiple_of(length), "sequences are whole");
    let magnitudes = device.allocate(DType::F32, &[result.len()], "a sequence's magnitudes")?;
    let factor = (1.0 / (length as f64).powi(2)) as f32;
    for first in (0..tokens).step_by(length) {
        let sequence = first..first + length;
        sums_of(device, (Term::Magnitude, x), sequence, &magnitudes, false)?;
        fisher(device, &magnitudes, factor, result, accumulate || first > 0)?;
    }
    Ok(())
}

/// The sums over some of the tokens.
fn sums_of(
    device: &Device,
    (term, x): (Term, &Tensor),
    tokens: std::ops::Range<usize>,
    result: &Tensor,
    accumulate: bool,
) -> Result<()> {
    for start in tokens.clone().step_by(SUMMED_ROWS) {
        let params = Params {
            tokens: SUMMED_ROWS.min(tokens.end - start) as u32,
            columns: result.len() as u32,
            token_start: start as u32,
            accumulate: u32::from(accumulate || start > tokens.start),
        };
        device.call(&KERNEL, term.variant(x.dtype()), &params, &[x, result])?;
    }
    Ok(())
}

fn counted(term: Term, x: f64) -> f64 {
    match term {
        Term::Value => x,
        Term::Magnitude => x.abs(),
        Term::Square => x.powi(2),
    }
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let (start, term) = (p.token_start as usize, Term::of(args.variant));
    let column = |column: usize| {
        let before = if p.accumulate == 1 { args.tensors[1].get(column) } else { 0.0 };
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for token in start..start + tokens {
            let counted = counted(term, args.tensors[0].get(token * columns + column));
            sum += counted;
            magnitude += counted.abs();
        }
        let value = sum + before;
        let bound = gamma(tokens + 2) * (magnitude + before.abs())
            + tokens as f64 * DType::F32.underflow()
            + storing(DType::F32, value);
        (value, bound)
    };
    super::element::collected((0..columns).into_par_iter().map(column).collect())
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let term = Term::of(args.variant);
    let x = args.tensors[0].load(p.token_start as usize * columns, tokens * columns);
    let mut sums = if p.accumulate == 1 { outputs.load(0, 0, columns) } else { vec![0.0; columns] };
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(index, sums)| {
        let mut totals = vec![0.0; sums.len()];
        for line in x.chunks_exact(columns) {
            for (total, value) in totals.iter_mut().zip(&line[index * COLUMNS..]) {
                *total += counted(term, f64::from(*value));
            }
        }
        for (sum, total) in sums.iter_mut().zip(totals) {
            *sum += total as f32;
        }
    });
    outputs.store(0, 0, &sums);
}

/// Sums `count` of all tokens from `start` on.
fn case(
    (tokens, columns): (usize, usize),
    (start, count): (usize, usize),
    note: &'static str,
) -> Case {
    let label = format!("tokens={tokens},columns={columns},start={start},count={count}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(53);
        let mut x = random.values(tokens * columns, 3.0);
        // Their squares are beyond f16.
        if note == ",large" {
            x.iter_mut().for_each(|value| *value *= 2e4);
        }
        let params = Params {
            tokens: count as u32,
            columns: columns as u32,
            token_start: start as u32,
            accumulate: u32::from(note == ",accumulate"),
        };
        let before = random.values(columns, 10.0);
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[tokens, columns], &x),
            HostTensor::from_f32(DType::F32, &[columns], &before),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (start, count) = (sizes.between(0, 0, 9), sizes.between(1, 1, 200));
    let tokens = start + count + sizes.between(2, 0, 5);
    let note = ["", ",accumulate"][sizes.between(3, 0, 1)];
    case((tokens, sizes.between(4, 1, 300)), (start, count), note)
}

fn cases() -> Vec<Case> {
    vec![
        case((13, 97), (0, 13), ""),
        case((1, 1), (0, 1), ""),
        case((7, 64), (0, 7), ",accumulate"),
        case((1021, 33), (0, 1021), ""),
        case((29, 41), (4, 18), ",accumulate"),
        case((5, 40), (0, 5), "").with(Poison::Zeros),
        case((5, 40), (0, 5), ",large"),
        case((5, 40), (0, 5), "").with(Poison::NegativeInfinity),
        case((5, 40), (0, 5), "").with(Poison::NaN),
        case((4096, 8192), (0, 4096), "").bench(),
    ]
}
