//! `loss/distil`: how far a child's next-token distribution is from its parent's, both at a temperature T, and the gradient of
//! that at the child's logits: the losses of distillation.
//!
//! With p = softmax(parent / T), q = softmax(child / T), z = child / T, and dq_i/dz_j = q_i ([i = j] - q_j), so that a loss
//! whose slope at q is a has the gradient q_j (a_j - sum(q a)) at z:
//!
//! - Forward KL(p || q) = sum(p log(p / q)) (Hinton, Vinyals and Dean 2015, arXiv 1503.02531). a = -p / q, so the gradient is
//!   q - p.
//! - Reverse KL(q || p) = sum(q log(q / p)) (Gu et al. 2023, arXiv 2306.08543). a = log(q / p) + 1, so it is
//!   q (log(q / p) - KL(q || p)).
//! - Jensen-Shannon, b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q (Agarwal et al. 2024, arXiv 2306.13649,
//!   equation 1). a = -b (1 - b) p / m + (1 - b) (log(q / m) + 1 - (1 - b) q / m) = (1 - b) log(q / m), the rest being
//!   (1 - b) (1 - m / m) = 0, so it is (1 - b) q (log(q / m) - KL(q || m)).
//!
//! Times weight / T: 1 / T for z = child / T, and what a user wants of the loss.

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        /// 0 forward, 1 reverse, 2 Jensen-Shannon.
        kind: u32,
        /// Of the parent in the mixture.
        beta: f32,
        /// 1 / T.
        inverse: f32,
        /// weight / T.
        factor: f32,
    }
}

/// What is to become small.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// KL(parent || child): the child covers all that the parent may say.
    Forward,
    /// KL(child || parent): the child says nothing that the parent would not.
    Reverse,
    /// Between the two: both against their mixture.
    JensenShannon {
        /// The parent's share in the mixture, above 0 and below 1. Near 0 the gradient is beta times that of the forward
        /// KL, near 1 it is 1 - beta times that of the reverse.
        beta: f32,
    },
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "loss/distil",
    source: include_str!("../../../shaders/loss/distil.wgsl"),
    bindings: &[
        binding("parent", Access::Read, Element::Is(DType::F32)),
        binding("child", Access::Read, Element::Is(DType::F32)),
        binding("scored", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Output),
        binding("loss", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || {
        let with = |output, subgroups| Variant::typed(DType::F32, output).with_subgroups(subgroups);
        let types = [DType::F32, DType::F16];
        types.map(|t| [with(t, false), with(t, true)]).concat()
    },
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        let passes = if args.parameters::<Params>().kind == 2 { 4.0 } else { 3.0 };
        let bytes = 8.0 * passes + args.variant.output.size() as f64;
        Cost::new(15.0 * passes * values, bytes * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

impl Params {
    fn new(
        (rows, columns): (usize, usize),
        divergence: Divergence,
        temperature: f32,
        weight: f32,
    ) -> Self {
        let (kind, beta) = match divergence {
            Divergence::Forward => (0, 0.0),
            Divergence::Reverse => (1, 0.0),
            Divergence::JensenShannon { beta } => (2, beta),
        };
        Self {
            rows: rows as u32,
            columns: columns as u32,
            kind,
            beta,
            inverse: 1.0 / temperature,
            factor: weight / temperature,
        }
    }
}

/// From two models' logits of the same places, f32 (rows, columns) each, divided by `temperature`: the gradient, at the
/// child's, of `weight` times the sum of the rows' divergences, (rows, columns) in type `output`, and those divergences in
/// nats, f32 (rows). Rows whose `scored`, u32 (rows), is 0 count for nothing: both are 0 there.
///
/// A column may be ruled out, its logit -infinity, in either. A divergence is infinite where the distribution that it is from
/// has what the other rules out, and then its gradient is infinite or NaN but for the forward KL's. A row in which either has a
/// NaN gets NaN throughout.
#[expect(clippy::too_many_arguments, reason = "the loss, what it is of and how it is stored")]
pub fn distil(
    device: &Device,
    divergence: Divergence,
    parent: &Tensor,
    child: &Tensor,
    scored: &Tensor,
    temperature: f32,
    weight: f32,
    output: DType,
) -> Result<(Tensor, Tensor)> {
    assert_eq!(parent.shape(), child.shape(), "two models' logits of the same places");
    if let Divergence::JensenShannon { beta } = divergence {
        assert!(beta > 0.0 && beta < 1.0, "a mixture has something of both: {beta}");
    }
    let rows = scored.len();
    let result = device.allocate(output, child.shape(), "a gradient of logits")?;
    let loss = device.allocate(DType::F32, &[rows], "divergences")?;
    let params = Params::new((rows, child.len() / rows), divergence, temperature, weight);
    device.call(
        &KERNEL,
        Variant::typed(DType::F32, output).with_subgroups(device.capabilities().subgroups),
        &params,
        &[parent, child, scored, &result, &loss],
    )?;
    Ok((result, loss))
}

/// Shares that count for nothing, as in the shader.
const LEAST: f64 = 1e-30;

/// The error of a device's logarithm: 2^-21 between 0.5 and 2, 3 ulp elsewhere.
fn of_log(log: f64) -> f64 {
    f64::powi(2.0, -21).max(6.0 * U * log.abs())
}

/// softmax(line / T), each with the error of the shader's way to it.
///
/// Of exp: (3 + 2 |x|) ulp, and of x what its subtraction and its product round away. The sum is off by its terms' mean.
fn shares(line: &[f64], inverse: f32) -> Vec<(f64, f64)> {
    let highest = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let terms: Vec<(f64, f64)> = line
        .iter()
        .map(|logit| {
            let below = (logit - highest) * f64::from(inverse);
            (below.exp(), (8.0 + 8.0 * below.abs().min(100.0)) * U * below.exp())
        })
        .collect();
    let (mut sum, mut off) = (0.0, 0.0);
    for (term, its) in &terms {
        sum += term;
        off += its;
    }
    let of_sum = off / sum + gamma(line.len()) + 4.0 * U;
    let share = |(term, off): (f64, f64)| {
        let bound = (off + term * of_sum) / sum + DType::F32.underflow();
        (term / sum, 1.01 * bound)
    };
    terms.into_iter().map(share).collect()
}

/// A row's numbers: the logits below their highest and over the temperature, the shares with their errors, the logarithm
/// of the sum, and that sum's relative error.
struct Row {
    below: Vec<f64>,
    shares: Vec<(f64, f64)>,
    log: f64,
    off: f64,
}

impl Row {
    fn new(line: &[f64], inverse: f32) -> Self {
        let highest = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let below: Vec<f64> = line.iter().map(|v| (v - highest) * f64::from(inverse)).collect();
        let log = below.iter().map(|below| below.exp()).sum::<f64>().ln();
        let shares = shares(line, inverse);
        let off = shares.iter().map(|(_, off)| off).sum::<f64>() + gamma(line.len());
        Self { below, shares, log, off }
    }

    /// log(share / the other's share) at a column, and its error, given that of the logarithms of the sums.
    fn ratio(&self, other: &Row, column: usize) -> (f64, f64) {
        let (a, b) = (self.below[column], other.below[column]);
        let value = (a - b) + (other.log - self.log);
        let sizes = a.abs() + b.abs() + value.abs() + self.log + other.log;
        (value, 6.0 * U * sizes + self.logs_off(other))
    }

    /// The error of the difference of the logarithms of the sums.
    fn logs_off(&self, other: &Row) -> f64 {
        self.off + other.off + of_log(self.log) + of_log(other.log)
    }

    /// KL(self || other) and its bound.
    fn divergence(&self, other: &Row) -> (f64, f64) {
        let (mut value, mut off, mut sizes) = (0.0, 0.0, 0.0);
        for (column, (share, share_off)) in self.shares.iter().enumerate() {
            if *share < LEAST {
                continue;
            }
            let (a, b) = (self.below[column], other.below[column]);
            value += share * self.ratio(other, column).0;
            sizes += share * (a - b).abs();
            off += share_off * (a - b).abs() + 4.0 * U * share * (a.abs() + b.abs());
        }
        let sums = gamma(self.below.len()) + self.off + 4.0 * U;
        let bound = off + sizes * sums + self.logs_off(other) + 4.0 * U * (self.log + other.log);
        (value, bound + 1e-24)
    }
}

/// A row's number with its bound, and those of its columns.
type OfRow = ((f64, f64), Vec<(f64, f64)>);

/// The divergence of a row and the slope at each column, each with its bound.
fn slopes(p: &Params, parent: &[f64], child: &[f64]) -> OfRow {
    let (parent, child) = (Row::new(parent, p.inverse), Row::new(child, p.inverse));
    let pairs = parent.shares.iter().zip(&child.shares);
    if p.kind == 0 {
        let slope = |((p, p_off), (q, q_off)): (&(f64, f64), &(f64, f64))| {
            (q - p, p_off + q_off + 2.0 * U * (q - p).abs())
        };
        return (parent.divergence(&child), pairs.map(slope).collect());
    }
    if p.kind == 1 {
        let (value, bound) = child.divergence(&parent);
        let slope = |(column, (q, q_off)): (usize, &(f64, f64))| {
            if *q < LEAST {
                return (0.0, LEAST);
            }
            let (ratio, ratio_off) = child.ratio(&parent, column);
            let from = ratio - value;
            let off = ratio_off + bound + 4.0 * U * (ratio.abs() + value.abs());
            (q * from, q_off * from.abs() + q * off)
        };
        return ((value, bound), child.shares.iter().enumerate().map(slope).collect());
    }
    let beta = f64::from(p.beta);
    let terms = pairs.map(|(&(p, p_off), &(q, q_off))| {
        let mixed = beta * p + (1.0 - beta) * q;
        let mixed_off = (beta * p_off + (1.0 - beta) * q_off) / mixed + 4.0 * U;
        [(p, p_off), (q, q_off)].map(|(share, off)| {
            let log = (share / mixed).ln();
            let log_off = off / share + mixed_off + 6.0 * U + of_log(log);
            if share < LEAST { (0.0, 0.0) } else { (log, log_off) }
        })
    });
    let terms: Vec<[(f64, f64); 2]> = terms.collect();
    let whole = |side: usize| {
        let shares = [&parent.shares, &child.shares][side];
        let (mut value, mut off, mut sizes) = (0.0, 0.0, 0.0);
        for ((share, share_off), term) in shares.iter().zip(&terms) {
            let (log, log_off) = term[side];
            value += share * log;
            sizes += (share * log).abs();
            off += share_off * log.abs() + share * log_off;
        }
        (value, off + gamma(shares.len()) * sizes)
    };
    let ((of_parent, parent_off), (of_child, child_off)) = (whole(0), whole(1));
    let value = beta * of_parent + (1.0 - beta) * of_child;
    let bound = beta * parent_off + (1.0 - beta) * child_off + 4.0 * U * value.abs();
    let slope = |((q, q_off), term): (&(f64, f64), &[(f64, f64); 2])| {
        if *q < LEAST {
            return (0.0, LEAST);
        }
        let (log, log_off) = term[1];
        let from = log - of_child;
        let off = log_off + child_off + 5.0 * U * (log.abs() + of_child.abs());
        ((1.0 - beta) * q * from, (1.0 - beta) * (q_off * from.abs() + q * off))
    };
    ((value, bound), child.shares.iter().zip(&terms).map(slope).collect())
}

/// The divergence of a row and its gradient, as a variant stores it.
pub(super) fn row_reference(
    p: &Params,
    variant: &Variant,
    scored: u32,
    (parent, child): (&[f64], &[f64]),
) -> OfRow {
    if scored == 0 {
        return ((0.0, 0.0), vec![(0.0, 0.0); child.len()]);
    }
    let ((value, bound), slopes) = slopes(p, parent, child);
    let factor = f64::from(p.factor);
    let gradient = |(slope, off): (f64, f64)| {
        let value = if value.is_nan() { f64::NAN } else { slope * factor };
        let stored = storing(variant.output, value) + storing(DType::F32, value);
        (value, 1.01 * off * factor.abs() + stored)
    };
    let gradients = slopes.into_iter().map(gradient).collect();
    ((value, 1.01 * bound + storing(DType::F32, value)), gradients)
}

/// The gradients and the divergences of all rows.
pub(super) fn collected(rows: Vec<OfRow>) -> Vec<Expected> {
    let (mut result, mut loss) = (Expected::default(), Expected::default());
    for ((value, bound), gradients) in rows {
        gradients.into_iter().for_each(|(value, bound)| result.push(value, bound));
        loss.push(value, bound);
    }
    vec![result, loss]
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (parent, child) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let pairs = parent.par_chunks_exact(columns).zip(child.par_chunks_exact(columns));
    let rows = pairs.zip(args.tensors[2].u32s());
    let row = |(pair, scored): (_, &u32)| row_reference(&p, args.variant, *scored, pair);
    collected(rows.map(row).collect())
}

/// log(softmax(line / T)), in f64.
fn log_shares(line: &[f32], inverse: f32) -> Vec<f64> {
    let highest = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let below = |logit: &f32| (f64::from(*logit) - f64::from(highest)) * f64::from(inverse);
    let log = line.iter().map(|logit| below(logit).exp()).sum::<f64>().ln();
    line.iter().map(|logit| below(logit) - log).collect()
}

/// A row's divergence; its gradient comes to stand in the place of the child's logits.
pub(super) fn row_cpu(p: &Params, scored: u32, parent: &[f32], child: &mut [f32]) -> f32 {
    if scored == 0 {
        child.fill(0.0);
        return 0.0;
    }
    let (parent, logs) = (log_shares(parent, p.inverse), log_shares(child, p.inverse));
    let broken = parent.iter().chain(&logs).any(|log| log.is_nan());
    if broken {
        child.fill(f32::NAN);
        return f32::NAN;
    }
    let beta = f64::from(p.beta);
    let counted = |log: f64, other: f64| {
        let share = log.exp();
        if share < LEAST { 0.0 } else { share * (log - other) }
    };
    let mixed = |(p, q): (&f64, &f64)| (beta * p.exp() + (1.0 - beta) * q.exp()).ln();
    let others: Vec<f64> = match p.kind {
        0 | 1 => parent.clone(),
        _ => parent.iter().zip(&logs).map(mixed).collect(),
    };
    let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| counted(*a, *b)).sum::<f64>();
    let of_child = sum(&logs, &others);
    let (loss, share) = match p.kind {
        0 => (sum(&parent, &logs), 1.0),
        1 => (of_child, 1.0),
        _ => (beta * sum(&parent, &others) + (1.0 - beta) * of_child, 1.0 - beta),
    };
    for (column, value) in child.iter_mut().enumerate() {
        let q = logs[column].exp();
        let slope = match p.kind {
            0 => q - parent[column].exp(),
            _ if q < LEAST => 0.0,
            _ => share * q * (logs[column] - others[column] - of_child),
        };
        *value = (slope * f64::from(p.factor)) as f32;
    }
    loss as f32
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (parent, mut child) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let rows = child.par_chunks_mut(columns).zip(parent.par_chunks(columns));
    let losses: Vec<f32> = rows
        .zip(args.tensors[2].u32s())
        .map(|((child, parent), scored)| row_cpu(&p, *scored, parent, child))
        .collect();
    outputs.store(0, 0, &child);
    outputs.store(1, 0, &losses);
}

const FORWARD: Divergence = Divergence::Forward;
const REVERSE: Divergence = Divergence::Reverse;
const MIDDLE: Divergence = Divergence::JensenShannon { beta: 0.5 };
const ASIDE: Divergence = Divergence::JensenShannon { beta: 0.125 };

/// Logits of a parent and, a little or entirely other, of its child, at a temperature.
fn case(
    (rows, columns): (usize, usize),
    divergence: Divergence,
    (scale, apart): (f32, f32),
    temperature: f32,
    note: &'static str,
) -> Case {
    let label = format!(
        "rows={rows},columns={columns},{divergence:?},scale={scale},apart={apart},temperature={temperature}{note}"
    );
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(67);
        let mut parent = random.values(rows * columns, scale);
        let shift = random.values(rows * columns, apart);
        let mut child: Vec<f32> = parent.iter().zip(shift).map(|(b, d)| b + d).collect();
        let mut scored: Vec<u32> = vec![1; rows];
        match note {
            // Every third row counts, whatever its flag is; what stands in the others does not.
            ",scored" => (0..rows).for_each(|row| {
                scored[row] = [0, 1 << 31, 0][row % 3];
                if row % 3 == 0 {
                    parent[row * columns] = f32::NAN;
                }
            }),
            // A constant between the two changes nothing.
            ",shifted" => child.iter_mut().for_each(|logit| *logit += 30.0),
            // The child rules out a column that the parent does not, and both rule out another.
            ",child infinity" => {
                child[0] = f32::NEG_INFINITY;
                child[columns - 1] = f32::NEG_INFINITY;
                parent[columns - 1] = f32::NEG_INFINITY;
            }
            // The parent rules out a column that the child does not.
            ",parent infinity" => parent[columns / 2] = f32::NEG_INFINITY,
            ",nan parent" => parent[columns - 1] = f32::NAN,
            ",nan child" => child[columns / 2] = f32::NAN,
            _ => {}
        }
        let params = Params::new((rows, columns), divergence, temperature, 0.37);
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &parent),
            HostTensor::from_f32(DType::F32, &[rows, columns], &child),
            HostTensor::from_u32(&[rows], &scored),
            HostTensor::zeros(variant.output, &[rows, columns]),
            HostTensor::zeros(DType::F32, &[rows]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let scale = [1.0, 12.0, 200.0][sizes.between(2, 0, 2)];
    let apart = [0.0, 1e-3, 0.3, 5.0, 200.0][sizes.between(3, 0, 4)];
    let temperature = [0.5, 1.0, 2.0, 7.0][sizes.between(4, 0, 3)];
    let divergence = [FORWARD, REVERSE, MIDDLE, ASIDE][sizes.between(5, 0, 3)];
    let note = ["", ",scored"][sizes.between(6, 0, 1)];
    let (rows, columns) = (sizes.between(0, 1, 40), sizes.between(1, 1, 1500));
    case((rows, columns), divergence, (scale, apart), temperature, note)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for divergence in [FORWARD, REVERSE, MIDDLE, ASIDE] {
        cases.extend([
            case((3, 101), divergence, (5.0, 1.0), 1.0, ""),
            case((3, 700), divergence, (8.0, 0.0), 2.0, ""),
            case((1, 1), divergence, (3.0, 1.0), 2.0, ""),
            case((5, 257), divergence, (8.0, 4.0), 0.7, ""),
            case((4, 300), divergence, (100.0, 100.0), 1.0, ""),
            case((7, 400), divergence, (6.0, 0.1), 4.0, ",scored"),
            case((3, 400), divergence, (6.0, 0.1), 4.0, ",shifted"),
            case((2, 97), divergence, (2.0, 0.5), 2.0, ",child infinity"),
            case((2, 97), divergence, (1.0, 0.1), 2.0, ",nan parent"),
            case((2, 97), divergence, (1.0, 0.1), 2.0, ",nan child"),
        ]);
    }
    cases.extend([
        case((1, 49_152), FORWARD, (12.0, 0.2), 2.0, ""),
        case((1, 49_152), ASIDE, (12.0, 0.2), 2.0, ""),
        case((2, 97), FORWARD, (2.0, 0.5), 2.0, ",parent infinity"),
        case((2, 97), MIDDLE, (2.0, 0.5), 2.0, ",parent infinity"),
        // More rows than one dimension has workgroups, for one variant.
        case((1051, 3), REVERSE, (2.0, 0.5), 2.0, "")
            .only(|variant| !variant.subgroups && variant.output == DType::F32),
        case((512, 49_152), FORWARD, (12.0, 0.2), 2.0, "").bench(),
        case((512, 49_152), MIDDLE, (12.0, 0.2), 2.0, "").bench(),
    ]);
    cases
}
