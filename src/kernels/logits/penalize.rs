//! `logits/penalize`: the repetition penalty (Keskar et al. 2019, "CTRL", arXiv 1909.05858, section 4.1, in the form of Hugging Face
//! transformers), in place: of each token that a row has read, a negative logit times the penalty, another over it. Tokens that were
//! read are bits, to which the one that was read last is added here.

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        /// Of 32 tokens each, for all columns.
        words: u32,
    }
}

/// The penalty of each row, f32 of (rows, 2): a number above zero, and 1 over it.
#[derive(Clone, Debug)]
pub struct Penalties(Tensor);

impl Penalties {
    /// Of rows with these penalties, above zero; 1 leaves a row as it is.
    pub fn upload(device: &Device, penalties: &[f32]) -> Result<Self> {
        device.upload(&with_inverses(penalties), "repetition penalties").map(Self)
    }
}

fn with_inverses(penalties: &[f32]) -> HostTensor {
    let pairs: Vec<f32> = penalties.iter().flat_map(|penalty| [*penalty, 1.0 / penalty]).collect();
    HostTensor::from_f32(DType::F32, &[penalties.len(), 2], &pairs)
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "logits/penalize",
    source: include_str!("../../../shaders/logits/penalize.wgsl"),
    bindings: &[
        binding("read_now", Access::Read, Element::Is(DType::U32)),
        binding("seen", Access::ReadWrite, Element::Is(DType::U32)),
        binding("penalties", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| fold(args.tensors[1].len().div_ceil(64)),
    // As if an eighth of the tokens had been read.
    cost: |args| Cost::new(args.tensors[3].len() as f64, 2.0 * args.tensors[3].len() as f64),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Words that hold a bit for each of so many tokens.
pub fn words(columns: usize) -> usize {
    columns.div_ceil(32)
}

/// Penalizes `logits`, f32 of (rows, columns), in place. `seen`, u32 of (rows, [`words`]), has a bit for each token that a row has read,
/// the lowest of a word first; `read_now`, u32 of (rows), are those that it has read since.
pub fn penalize(
    device: &Device,
    logits: &Tensor,
    read_now: &Tensor,
    seen: &Tensor,
    Penalties(penalties): &Penalties,
) -> Result<()> {
    let rows = read_now.len();
    let params = Params::new(rows, logits.len() / rows);
    device.call(&KERNEL, Variant::BASELINE, &params, &[read_now, seen, penalties, logits])
}

impl Params {
    fn new(rows: usize, columns: usize) -> Self {
        let [rows, columns, words] = [rows, columns, words(columns)].map(|count| count as u32);
        Self { rows, columns, words }
    }
}

/// The bits with those of the tokens that were read last, and the logits' places that are penalized.
fn marked(p: &Params, read_now: &[u32], seen: &[u32]) -> (Vec<u32>, Vec<usize>) {
    let (columns, words) = (p.columns as usize, p.words as usize);
    let mut seen = seen.to_vec();
    for (row, token) in read_now.iter().enumerate() {
        if (*token as usize) < 32 * words {
            seen[row * words + *token as usize / 32] |= 1 << (token % 32);
        }
    }
    let has = |row: usize, column: usize| seen[row * words + column / 32] >> (column % 32) & 1 == 1;
    let all = (0..p.rows as usize).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let places = all.filter(|(row, column)| has(*row, *column));
    let places = places.map(|(row, column)| row * columns + column).collect();
    (seen, places)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (seen, places) = marked(&p, args.tensors[0].u32s(), args.tensors[1].u32s());
    let penalties = args.tensors[2].to_f64();
    let mut logits = Expected::exact(args.tensors[3].to_f64());
    for place in places {
        let logit = logits.values[place];
        let penalty = penalties[2 * (place / p.columns as usize)];
        let value = if logit < 0.0 { logit * penalty } else { logit / penalty };
        logits.put(place, [(value, storing(DType::F32, value) + 2.0 * U * value.abs())]);
    }
    vec![Expected::exact(seen.into_iter().map(f64::from).collect()), logits]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let count = (p.rows * p.words) as usize;
    let (seen, places) = marked(&p, args.tensors[0].u32s(), &outputs.words(0)[..count]);
    outputs.words(0)[..count].copy_from_slice(&seen);
    let penalties = args.tensors[2].to_f32();
    let logits: &mut [f32] = bytemuck::cast_slice_mut(outputs.words(1));
    for place in places {
        let row = 2 * (place / p.columns as usize);
        let factor = penalties[row + usize::from(logits[place] >= 0.0)];
        logits[place] *= factor;
    }
}

fn case(rows: usize, columns: usize, penalty: f32, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},penalty={penalty}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(82);
        let words = words(columns);
        let mut seen: Vec<u32> =
            (0..rows * words).map(|_| random.word() & random.word() & random.word()).collect();
        let mut read_now: Vec<u32> = (0..rows).map(|_| random.below(columns as u32)).collect();
        match note {
            ",all" => seen.fill(u32::MAX),
            ",none" => seen.fill(0),
            // The highest token, whose bit is a word's last where there are whole words.
            ",last" => read_now.fill(columns as u32 - 1),
            _ => {}
        }
        // Each row has its own.
        let penalties: Vec<f32> =
            (0..rows).map(|row| penalty * (1.0 + 0.25 * row as f32)).collect();
        Params::new(rows, columns).case(vec![
            HostTensor::from_u32(&[rows], &read_now),
            HostTensor::from_u32(&[rows, words], &seen),
            with_inverses(&penalties),
            HostTensor::from_f32(
                DType::F32,
                &[rows, columns],
                &random.values(rows * columns, 20.0),
            ),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let penalty = [1.0, 1.1, 0.7, 3.0][sizes.between(2, 0, 3)];
    case(sizes.between(0, 1, 9), sizes.between(1, 1, 1500), penalty, "")
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 101, 1.2, ""),
        case(1, 1, 2.0, ""),
        case(2, 96, 1.5, ",last"),
        case(2, 97, 0.5, ",last"),
        case(5, 777, 1.3, ",all"),
        case(4, 4096, 1.1, ",none"),
        case(2, 97, 1.3, ",all").poisoned(3, Poison::NaN),
        case(2, 97, 1.3, ",all").poisoned(3, Poison::NegativeInfinity),
        case(32, 128_256, 1.1, "").bench(),
    ]
}
