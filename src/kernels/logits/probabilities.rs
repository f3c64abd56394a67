//! `logits/probabilities`: what tokens are drawn by: softmax(logits / temperature) over the likeliest tokens alone, 0 elsewhere.
//!
//! In the order of Hugging Face transformers' warpers: the temperature; top-k (Fan et al. 2018, arXiv 1805.04833), the k largest logits;
//! of these top-p (Holtzman et al. 2020, arXiv 1904.09751), each token that is followed downwards by more than 1 - p of their mass, that
//! is the smallest set of the likeliest whose mass reaches p; of these min-p (Nguyen et al. 2024, arXiv 2407.01082), probabilities of at
//! least min_p times the largest. Every filter is a threshold on the logit: equal logits stay or go together.

use crate::kernels::prelude::*;

/// All of a row's mass, in the integers that the kernel adds up.
const WHOLE: u32 = 1 << 31;

params! {
    struct Params {
        rows: u32,
        columns: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "logits/probabilities",
    source: include_str!("../../../shaders/logits/probabilities.wgsl"),
    bindings: &[
        binding("scores", Access::Read, Element::Is(DType::F32)),
        binding("filters", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
        binding("peaks", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    // As many as the histogram has bins.
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(150.0 * values, 60.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Which tokens may be drawn, and how likely each is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filter {
    /// Above 0.
    pub temperature: f64,
    /// Of so many at most, from 1.
    pub top_k: usize,
    /// Above 0; all at 1.
    pub top_p: f64,
    /// From 0, which keeps all, to 1.
    pub min_p: f64,
}

/// A filter as the kernel takes it.
#[derive(Clone, Copy, Debug)]
struct RowFilter {
    /// 1 / temperature.
    scale: f32,
    /// Top-k, from 1; all at the number of columns.
    keep: u32,
    /// Top-p in parts of 2^31, from 1; all at 2^31.
    mass: u32,
    /// log(min-p), below zero.
    floor: f32,
}

/// Words of a row's filter.
const WORDS: usize = 4;

impl RowFilter {
    fn new(filter: &Filter, columns: usize) -> Self {
        let mass = (filter.top_p * f64::from(WHOLE)).round() as u32;
        Self {
            scale: (1.0 / filter.temperature) as f32,
            keep: filter.top_k.clamp(1, columns) as u32,
            mass: mass.clamp(1, WHOLE),
            floor: filter.min_p.ln().max(f64::from(f32::MIN)) as f32,
        }
    }

    fn words(self) -> [u32; WORDS] {
        [self.scale.to_bits(), self.keep, self.mass, self.floor.to_bits()]
    }

    fn of_words(words: &[u32]) -> Self {
        let [scale, floor] = [words[0], words[3]].map(f32::from_bits);
        Self { scale, keep: words[1], mass: words[2], floor }
    }
}

/// The filter of each row of logits, u32 of (rows, 4).
#[derive(Clone, Debug)]
pub struct Filters(Tensor);

impl Filters {
    /// Of rows of so many columns.
    pub fn upload(device: &Device, filters: &[Filter], columns: usize) -> Result<Self> {
        device.upload(&filter_words(filters, columns), "filters of tokens").map(Self)
    }
}

fn filter_words(filters: &[Filter], columns: usize) -> HostTensor {
    let words = filters.iter().flat_map(|filter| RowFilter::new(filter, columns).words());
    HostTensor::from_u32(&[filters.len(), WORDS], &words.collect::<Vec<_>>())
}

/// For `logits` of a row for each filter: the probabilities that tokens are drawn with, f32 of (rows, columns), and the largest logit over the
/// temperature with the sum of exp(logit / temperature - largest), before any filter, f32 of (rows, 2), as
/// [`loss/peaks`](crate::kernels::loss::peaks) has them. The sum is NaN where a logit is NaN or above every number; the probabilities of
/// such a row are 0.
pub fn probabilities(
    device: &Device,
    logits: &Tensor,
    Filters(filters): &Filters,
) -> Result<(Tensor, Tensor)> {
    let rows = filters.shape()[0];
    let columns = logits.len() / rows;
    let result = device.allocate(DType::F32, &[rows, columns], "probabilities")?;
    let peaks = device.allocate(DType::F32, &[rows, 2], "largest logits")?;
    let params = Params { rows: rows as u32, columns: columns as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[logits, filters, &result, &peaks])?;
    Ok((result, peaks))
}

/// A row's probabilities, and its largest logit and sum, each with its bound.
type RowReference = (Vec<(f64, f64)>, [(f64, f64); 2]);

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let logits = args.tensors[0].to_f64();
    let filters = args.tensors[1].u32s().par_chunks_exact(WORDS).map(RowFilter::of_words);
    let lines = logits.par_chunks_exact(p.columns as usize).zip(filters);
    let rows: Vec<RowReference> = lines.map(|(line, p)| row_reference(&p, line)).collect();
    let (mut probabilities, mut peaks) = (Expected::default(), Expected::default());
    for (row, pair) in rows {
        row.into_iter().for_each(|(value, bound)| probabilities.push(value, bound));
        pair.into_iter().for_each(|(value, bound)| peaks.push(value, bound));
    }
    vec![probabilities, peaks]
}

/// A token whose mass above it, or whose own, is within roundings of a threshold may stay or go: it has any probability from 0 to what
/// it has if it stays, and the others have from what they have with such tokens to what they have without.
fn row_reference(p: &RowFilter, line: &[f64]) -> RowReference {
    // The largest that is a number.
    let highest = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scale = f64::from(p.scale);
    let largest = (highest * scale, storing(DType::F32, highest * scale));
    if line.iter().any(|logit| logit.is_nan() || *logit == f64::INFINITY) {
        return (vec![(0.0, 0.0); line.len()], [largest, (f64::NAN, 0.0)]);
    }
    // Each exponential is off by (3 + 2 |x|) ulp, and its argument by half an ulp of the larger logit and one of its own.
    let terms: Vec<(f64, f64, f64)> = line
        .iter()
        .map(|logit| {
            let below = (logit - highest) * scale;
            (below, below.exp(), (8.0 + 8.0 * below.abs().min(100.0)) * U)
        })
        .collect();
    let sum: f64 = terms.iter().map(|(_, weight, _)| weight).sum();
    let off = terms.iter().map(|(_, weight, off)| weight * off).sum::<f64>() / sum;
    let error = off + gamma(line.len());
    let peaks = [largest, (sum, sum * error + storing(DType::F32, sum))];

    let mut order: Vec<usize> = (0..line.len()).collect();
    order.sort_by(|a, b| line[*b].total_cmp(&line[*a]));
    let last = line[order[p.keep as usize - 1]];
    order.retain(|token| line[*token] >= last);
    let among: f64 = order.iter().map(|token| terms[*token].1).sum();
    let wanted = f64::from(p.mass) / f64::from(WHOLE);
    // Masses are rounded to integers, and their sum is as far from the whole as all roundings together.
    let near = 2.0 * error + line.len() as f64 / f64::from(WHOLE);
    // How sure it is that each token stays: 1, 0, or between them where roundings decide.
    let mut stays = vec![0.0; line.len()];
    let (mut above, mut equal) = (0.0, 0.0);
    for (place, token) in order.iter().enumerate() {
        if place > 0 && line[*token] < line[order[place - 1]] {
            above += std::mem::take(&mut equal);
        }
        let (below, weight, _) = terms[*token];
        equal += weight / among;
        let slack = 8.0 * U * (below.abs() + 1.0);
        let floor = f64::from(p.floor);
        let surely = (p.mass == WHOLE || above == 0.0 || above < wanted - near)
            && (below == 0.0 || below >= floor + slack);
        let maybe = (p.mass == WHOLE || above < wanted + near) && below >= floor - slack;
        stays[*token] = if surely { 1.0 } else { 0.5 * f64::from(u8::from(maybe)) };
    }
    let mass = |sure: f64| {
        let tokens = order.iter().filter(|token| stays[**token] == sure);
        tokens.map(|token| terms[*token].1).sum::<f64>()
    };
    let (certain, doubtful) = (mass(1.0), mass(0.5));
    let probability = |(term, stays): (&(f64, f64, f64), &f64)| {
        let (_, weight, off) = *term;
        let most = weight / certain;
        let least = if *stays == 1.0 { weight / (certain + doubtful) } else { 0.0 };
        if *stays == 0.0 {
            return (0.0, 0.0);
        }
        let rounded = most * (off + error + 8.0 * U) + storing(DType::F32, most);
        ((most + least) / 2.0, (most - least) / 2.0 + rounded)
    };
    (terms.iter().zip(&stays).map(probability).collect(), peaks)
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let logits = args.tensors[0].to_f32();
    let filters = args.tensors[1].u32s().par_chunks_exact(WORDS).map(RowFilter::of_words);
    let lines = logits.par_chunks_exact(p.columns as usize).zip(filters);
    let rows: Vec<(Vec<f32>, [f32; 2])> = lines.map(|(line, p)| cpu_row(&p, line)).collect();
    for (row, (probabilities, peaks)) in rows.iter().enumerate() {
        outputs.store(0, row * p.columns as usize, probabilities);
        outputs.store(1, 2 * row, peaks);
    }
}

/// A row's probabilities, and its largest logit and sum: filters raise the logit that a token needs.
fn cpu_row(p: &RowFilter, line: &[f32]) -> (Vec<f32>, [f32; 2]) {
    let highest = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if line.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        return (vec![0.0; line.len()], [highest * p.scale, f32::NAN]);
    }
    let below = |logit: f32| (logit - highest) * p.scale;
    let weight = |logit: f32| f64::from(below(logit).exp());
    let sum: f64 = line.iter().map(|logit| weight(*logit)).sum();
    let peaks = [highest * p.scale, sum as f32];
    let mut least = f32::NEG_INFINITY;
    if (p.keep as usize) < line.len() {
        let mut order = line.to_vec();
        let largest_first = |a: &f32, b: &f32| b.total_cmp(a);
        least = *order.select_nth_unstable_by(p.keep as usize - 1, largest_first).1;
    }
    if p.mass < WHOLE {
        let mut order: Vec<f32> = line.iter().copied().filter(|logit| *logit >= least).collect();
        order.sort_unstable_by(|a, b| b.total_cmp(a));
        let among: f64 = order.iter().map(|logit| weight(*logit)).sum();
        let wanted = f64::from(p.mass) / f64::from(WHOLE) * among;
        let mut mass = 0.0;
        let reaches = |logit: &&f32| {
            mass += weight(**logit);
            mass >= wanted
        };
        least = order.iter().find(reaches).copied().unwrap_or(least);
    }
    let stays = |logit: f32| logit >= least && below(logit) >= p.floor;
    let kept: f64 = line.iter().filter(|logit| stays(**logit)).map(|logit| weight(*logit)).sum();
    let probability = |logit: &f32| match stays(*logit) {
        true => (weight(*logit) / kept) as f32,
        false => 0.0,
    };
    (line.iter().map(probability).collect(), peaks)
}

/// Filters: all tokens, then each filter alone, then all filters.
const FILTERS: [Filter; 6] = [
    Filter { temperature: 1.0, top_k: usize::MAX, top_p: 1.0, min_p: 0.0 },
    Filter { temperature: 0.7, top_k: 5, top_p: 1.0, min_p: 0.0 },
    Filter { temperature: 1.3, top_k: usize::MAX, top_p: 0.8, min_p: 0.0 },
    Filter { temperature: 2.0, top_k: usize::MAX, top_p: 1.0, min_p: 0.1 },
    Filter { temperature: 1.1, top_k: 40, top_p: 0.9, min_p: 0.02 },
    Filter { temperature: 0.9, top_k: 7, top_p: 1e-9, min_p: 1.0 },
];

fn case((rows, columns): (usize, usize), scale: f32, filter: Filter, note: &'static str) -> Case {
    let Filter { temperature, top_k, top_p, min_p } = filter;
    let top_k = top_k.min(columns);
    let label = format!(
        "rows={rows},columns={columns},scale={scale},temperature={temperature},top_k={top_k},top_p={top_p},min_p={min_p}{note}"
    );
    Case::new(label, move |_: &Variant| {
        let mut logits = Random::new(83).values(rows * columns, scale);
        match note {
            // Few values, so that many are equal.
            ",rounded" => logits.iter_mut().for_each(|logit| *logit = logit.round()),
            ",equal" => logits.fill(0.25),
            // Each row far above the one before, all below zero.
            ",levels" => logits
                .iter_mut()
                .enumerate()
                .for_each(|(i, v)| *v += 500.0 * (i / columns) as f32 - 2000.0),
            _ => {}
        }
        // Each row has the next one where they are mixed.
        let of_row = |row: usize| match note {
            ",mixed" => FILTERS[row % FILTERS.len()],
            _ => filter,
        };
        let filters: Vec<Filter> = (0..rows).map(of_row).collect();
        let params = Params { rows: rows as u32, columns: columns as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &logits),
            filter_words(&filters, columns),
            HostTensor::zeros(DType::F32, &[rows, columns]),
            HostTensor::zeros(DType::F32, &[rows, 2]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let shape = (sizes.between(0, 1, 20), sizes.between(1, 1, 1500));
    let filter = Filter {
        temperature: [0.3, 0.8, 1.0, 1.7][sizes.between(2, 0, 3)],
        top_k: [usize::MAX, 1, 3, 60][sizes.between(3, 0, 3)],
        top_p: [1.0, 0.3, 0.9, 0.99][sizes.between(4, 0, 3)],
        min_p: [0.0, 0.001, 0.1, 0.7][sizes.between(5, 0, 3)],
    };
    let scale = [1.0, 12.0, 200.0][sizes.between(6, 0, 2)];
    case(shape, scale, filter, ["", ",rounded"][sizes.between(7, 0, 1)])
}

fn cases() -> Vec<Case> {
    let [all, top_k, top_p, min_p, together, narrow] = FILTERS;
    let mut cases: Vec<Case> =
        FILTERS.iter().map(|filter| case((3, 1001), 8.0, *filter, "")).collect();
    cases.extend([
        case((1, 1), 3.0, together, ""),
        case((2, 300), 1.0, Filter { top_k: 299, ..all }, ""),
        case((3, 257), 4.0, top_k, ",rounded"),
        case((3, 257), 4.0, top_p, ",rounded"),
        case((3, 256), 4.0, min_p, ",rounded"),
        case((2, 77), 1.0, Filter { top_p: 0.5, ..all }, ",equal"),
        case((5, 400), 10.0, together, ",levels"),
        case((2, 500), 300.0, Filter { top_p: 0.999, ..all }, ""),
        case((1, 32_000), 12.0, Filter { top_k: usize::MAX, ..together }, ""),
        case((12, 400), 6.0, all, ",mixed"),
        case((2, 97), 1.0, together, "").with(Poison::Zeros),
        case((2, 97), 1.0, top_p, "").with(Poison::NegativeInfinity),
        case((2, 97), 1.0, all, "").with(Poison::Infinity),
        case((2, 97), 1.0, together, "").with(Poison::NaN),
        case((2, 97), 1.0, narrow, "").with(Poison::NaN),
        // More rows than one dimension has workgroups.
        case((1051, 3), 2.0, Filter { top_k: 2, ..all }, ""),
        case((32, 128_256), 12.0, together, "").bench(),
        case((1, 128_256), 12.0, together, "").bench(),
    ]);
    cases
}
