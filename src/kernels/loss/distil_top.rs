//! `loss/distil_top`: distillation from the likeliest tokens of a parent alone, as files of its outputs keep them: the gradient,
//! at a child's logits, of KL(p || q) = sum(p log(p / q)) over those tokens, with q = softmax(child / T) and p the parent's
//! shares at the same temperature, renormalized over its tokens: p = softmax(logs / T), which any constant added to `logs`
//! leaves as it is. The gradient is weight / T (q - p), where p is 0 for all other tokens.

use super::distil::{self, row_cpu, row_reference};
use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        top: u32,
        /// 1 / T.
        inverse: f32,
        /// weight / T.
        factor: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "loss/distil_top",
    source: include_str!("../../../shaders/loss/distil_top.wgsl"),
    bindings: &[
        binding("tokens", Access::Read, Element::Is(DType::U32)),
        binding("logs", Access::Read, Element::Is(DType::F32)),
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
        let values = args.tensors[2].len() as f64;
        Cost::new(20.0 * values, (12.0 + args.variant.output.size() as f64) * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// From a parent's likeliest tokens, u32 (rows, top) and distinct, their log-probabilities, f32 of the same shape, and a child's
/// logits, f32 (rows, columns): the gradient, at those logits, of `weight` times the sum of the rows' divergences at a
/// `temperature`, (rows, columns) in type `output`, and those divergences in nats, f32 (rows). Rows whose `scored`, u32 (rows),
/// is 0 count for nothing: both are 0 there.
///
/// A token from `columns` on stands for none, in rows that have fewer; a scored row has at least one. A divergence is infinite
/// where the child rules a token out. A row with a NaN gets NaN throughout.
pub fn distil_top(
    device: &Device,
    (tokens, logs): (&Tensor, &Tensor),
    child: &Tensor,
    scored: &Tensor,
    temperature: f32,
    weight: f32,
    output: DType,
) -> Result<(Tensor, Tensor)> {
    let rows = scored.len();
    assert_eq!(tokens.len(), logs.len(), "a log-probability for each token");
    let result = device.allocate(output, child.shape(), "a gradient of logits")?;
    let loss = device.allocate(DType::F32, &[rows], "divergences")?;
    let params = Params {
        rows: rows as u32,
        columns: (child.len() / rows) as u32,
        top: (tokens.len() / rows) as u32,
        inverse: 1.0 / temperature,
        factor: weight / temperature,
    };
    device.call(
        &KERNEL,
        Variant::typed(DType::F32, output).with_subgroups(device.capabilities().subgroups),
        &params,
        &[tokens, logs, child, scored, &result, &loss],
    )?;
    Ok((result, loss))
}

impl Params {
    /// The same as a divergence between two whole rows.
    fn whole(&self) -> distil::Params {
        let Self { rows, columns, inverse, factor, .. } = *self;
        distil::Params { rows, columns, kind: 0, beta: 0.0, inverse, factor }
    }

    /// A parent's row of logits: -infinity but for its tokens.
    fn spread(&self, tokens: &[u32], logs: &[f32]) -> Vec<f32> {
        let mut line = vec![f32::NEG_INFINITY; self.columns as usize];
        for (token, log) in tokens.iter().zip(logs) {
            if let Some(place) = line.get_mut(*token as usize) {
                *place = *log;
            }
        }
        line
    }
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, top) = (p.columns as usize, p.top as usize);
    let (tokens, logs) = (args.tensors[0].u32s(), args.tensors[1].to_f32());
    let child = args.tensors[2].to_f64();
    let rows: Vec<_> = child
        .par_chunks_exact(columns)
        .zip(tokens.par_chunks_exact(top))
        .zip(logs.par_chunks_exact(top))
        .zip(args.tensors[3].u32s())
        .map(|(((child, tokens), logs), scored)| {
            let parent = p.spread(tokens, logs).into_iter().map(f64::from);
            row_reference(&p.whole(), args.variant, *scored, (&parent.collect::<Vec<_>>(), child))
        })
        .collect();
    distil::collected(rows)
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (columns, top) = (p.columns as usize, p.top as usize);
    let (tokens, logs) = (args.tensors[0].u32s(), args.tensors[1].to_f32());
    let mut child = args.tensors[2].to_f32();
    let losses: Vec<f32> = child
        .par_chunks_mut(columns)
        .zip(tokens.par_chunks(top))
        .zip(logs.par_chunks(top))
        .zip(args.tensors[3].u32s())
        .map(|(((child, tokens), logs), scored)| {
            row_cpu(&p.whole(), *scored, &p.spread(tokens, logs), child)
        })
        .collect();
    outputs.store(0, 0, &child);
    outputs.store(1, 0, &losses);
}

/// A parent's likeliest tokens among a child's columns.
fn case(
    (rows, columns, top): (usize, usize, usize),
    scale: f32,
    temperature: f32,
    note: &'static str,
) -> Case {
    let label = format!(
        "rows={rows},columns={columns},top={top},scale={scale},temperature={temperature}{note}"
    );
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(68);
        let mut child = random.values(rows * columns, scale);
        let mut logs = random.values(rows * top, scale);
        logs.iter_mut().for_each(|log| *log -= scale);
        let mut tokens = Vec::new();
        let mut order: Vec<u32> = (0..columns as u32).collect();
        for _ in 0..rows {
            for place in 0..top {
                order.swap(place, place + random.below((columns - place) as u32) as usize);
            }
            tokens.extend(&order[..top]);
        }
        let mut scored: Vec<u32> = vec![1; rows];
        match note {
            ",scored" => (0..rows).for_each(|row| {
                scored[row] = [0, 1 << 31, 0][row % 3];
                if row % 3 == 0 {
                    child[row * columns] = f32::NAN;
                }
            }),
            // Fewer tokens than there is room for, of whose numbers nothing counts.
            ",fewer" => tokens.iter_mut().zip(&mut logs).skip(1).step_by(2).for_each(|(t, log)| {
                *t = u32::MAX - *t;
                *log = f32::NAN;
            }),
            // The child rules out a token, and another column.
            ",infinity" => {
                child[tokens[0] as usize] = f32::NEG_INFINITY;
                child[order[top] as usize] = f32::NEG_INFINITY;
            }
            ",nan parent" => logs[top - 1] = f32::NAN,
            ",nan child" => child[columns / 2] = f32::NAN,
            _ => {}
        }
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            top: top as u32,
            inverse: 1.0 / temperature,
            factor: 0.37 / temperature,
        };
        params.case(vec![
            HostTensor::from_u32(&[rows, top], &tokens),
            HostTensor::from_f32(DType::F32, &[rows, top], &logs),
            HostTensor::from_f32(DType::F32, &[rows, columns], &child),
            HostTensor::from_u32(&[rows], &scored),
            HostTensor::zeros(variant.output, &[rows, columns]),
            HostTensor::zeros(DType::F32, &[rows]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (rows, columns) = (sizes.between(0, 1, 40), sizes.between(1, 1, 1500));
    let top = sizes.between(2, 1, columns.min(70));
    let scale = [1.0, 12.0, 100.0][sizes.between(3, 0, 2)];
    let temperature = [0.5, 1.0, 2.0][sizes.between(4, 0, 2)];
    case((rows, columns, top), scale, temperature, "")
}

fn cases() -> Vec<Case> {
    vec![
        case((3, 101, 8), 5.0, 1.0, ""),
        case((1, 1, 1), 3.0, 2.0, ""),
        case((2, 300, 300), 4.0, 2.0, ""),
        case((1, 49_152, 64), 12.0, 2.0, ""),
        case((5, 257, 33), 8.0, 0.7, ""),
        case((4, 700, 300), 60.0, 1.0, ""),
        case((7, 400, 20), 6.0, 4.0, ",scored"),
        case((3, 97, 10), 6.0, 1.0, ",fewer"),
        case((2, 97, 10), 2.0, 2.0, ",infinity"),
        case((2, 97, 10), 1.0, 2.0, ",nan parent"),
        case((2, 97, 10), 1.0, 2.0, ",nan child"),
        // More rows than one dimension has workgroups, for one variant.
        case((1051, 3, 2), 2.0, 2.0, "")
            .only(|variant| !variant.subgroups && variant.output == DType::F32),
        case((512, 49_152, 64), 12.0, 2.0, "").bench(),
    ]
}
