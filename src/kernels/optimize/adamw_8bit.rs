//! `optimize/adamw_8bit`: a step of [`optimize/adamw`](super::adamw) whose two moments are kept in 8 bits each (Dettmers,
//! Lewis, Shleifer and Zettlemoyer 2022, arXiv 2110.02861): blocks of 256 elements with their largest magnitude in f32, and
//! for each element the code of the nearest level, level(code) absmax. The step itself is taken on decoded moments, in f32.
//!
//! Levels are the paper's dynamic map (section 1.3, and `create_dynamic_map` of bitsandbytes): for each power of ten from
//! 10^-6 to 1 twice as many levels as for the one before, evenly between 0.1 and 1 of it; 0 and 1; half of them negative in
//! the map of the mean, none in that of the squares.

use super::step::{self, AdamW, Step};
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        step: Step,
    }
}

/// Elements that share a largest magnitude.
const BLOCK: usize = 256;

/// Blocks of a workgroup, as in the shader.
const BLOCKS: usize = 8;

/// Words of the codes of one moment of a block.
const WORDS: usize = BLOCK / 4;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "optimize/adamw_8bit",
    source: include_str!("../../../shaders/optimize/adamw_8bit.wgsl"),
    bindings: &[
        binding("gradient", Access::Read, Element::Is(DType::F32)),
        binding("state", Access::Read, Element::Is(DType::F32)),
        binding("levels", Access::Read, Element::Is(DType::F32)),
        binding("weight", Access::ReadWrite, Element::Is(DType::F32)),
        binding("codes", Access::ReadWrite, Element::Is(DType::U32)),
        binding("absmax", Access::ReadWrite, Element::Is(DType::F32)),
        binding("copied", Access::ReadWrite, Element::Output),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: step::variants,
    groups: |args| {
        let blocks = (args.parameters::<Params>().count as usize).div_ceil(BLOCK);
        fold(blocks.div_ceil(BLOCKS))
    },
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        let copied = 2.0 * f64::from(args.variant.constant("COPY"));
        Cost::new(100.0 * values, (16.1 + copied) * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Both moments of a weight, in 8 bits each. Blocks are of 256 elements, the last one padded.
#[derive(Clone, Debug)]
pub struct Moments8 {
    /// u32 (blocks, 2, 64): four codes a word; of the mean of the gradient, then of its squares.
    pub codes: Tensor,
    /// f32 (blocks, 2): what the levels of a block are multiplied by.
    pub absmax: Tensor,
    /// f32 (2, 256): the levels.
    levels: Tensor,
}

impl Moments8 {
    /// Those of a weight of `len` elements before the first step.
    pub fn zeros(device: &Device, len: usize) -> Result<Self> {
        let blocks = len.div_ceil(BLOCK);
        let upload = |host: &HostTensor| device.upload(host, "moments in 8 bits");
        Ok(Self {
            codes: upload(&HostTensor::zeros(DType::U32, &[blocks, 2, WORDS]))?,
            absmax: upload(&HostTensor::zeros(DType::F32, &[blocks, 2]))?,
            levels: upload(&levels())?,
        })
    }

    /// What they take on a device.
    pub fn bytes(&self) -> u64 {
        self.codes.bytes() + self.absmax.bytes() + self.levels.bytes()
    }
}

/// Takes a step as [`adamw`](super::adamw::adamw) does, with moments in 8 bits.
#[expect(clippy::too_many_arguments, reason = "what a step reads and what it changes")]
pub fn adamw_8bit(
    device: &Device,
    settings: &AdamW,
    step: u64,
    gradient: &Tensor,
    state: &Tensor,
    weight: &Tensor,
    moments: &Moments8,
    copy: Option<&Tensor>,
) -> Result<()> {
    let count = gradient.len();
    let lengths = std::iter::once(weight).chain(copy);
    lengths.for_each(|tensor| assert_eq!(tensor.len(), count, "a gradient for each weight"));
    assert_eq!(moments.absmax.len(), 2 * count.div_ceil(BLOCK), "moments for each weight");
    let copied = step::copy_or_unused(device, copy)?;
    let params = Params { count: count as u32, step: Step::new(settings, step) };
    device.call(
        &KERNEL,
        step::variant(copy.is_some()),
        &params,
        &[gradient, state, &moments.levels, weight, &moments.codes, &moments.absmax, &copied],
    )
}

/// The 256 levels of a moment, in rising order: for powers of ten from -6 to 0 the middles of 2^i (with a sign) or 2^(i + 1)
/// equal parts of [0.1, 1], of either sign or not; 0, and 1.
fn dynamic_map(signed: bool) -> Vec<f32> {
    let mut levels = vec![0.0, 1.0];
    for power in 0..7 {
        let parts = 1 << (power + i32::from(!signed));
        for part in 0..parts {
            let middle = 0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(parts);
            let level = (middle * f64::powi(10.0, power - 6)) as f32;
            levels.push(level);
            if signed {
                levels.push(-level);
            }
        }
    }
    levels.sort_by(f32::total_cmp);
    levels
}

/// The levels of both moments, f32 (2, 256).
fn levels() -> HostTensor {
    let both = [dynamic_map(true), dynamic_map(false)].concat();
    HostTensor::from_f32(DType::F32, &[2, 256], &both)
}

/// The code of the level nearest to a share, of two as near the lower one.
fn nearest(levels: &[f32], share: f64) -> usize {
    let above = levels.partition_point(|level| f64::from(*level) <= share);
    let (low, high) = (above.max(1) - 1, above.clamp(1, levels.len() - 1));
    let middle = f64::from(0.5 * (levels[low] + levels[high]));
    if share > middle { high } else { low }
}

/// The codes of a block's moment, as words with their bounds, and its largest magnitude with its own: from its elements with
/// theirs. An element so near the middle of two levels that its error decides may take either.
fn encode(levels: &[f32], elements: &[(f64, f64)]) -> (Vec<(f64, f64)>, (f64, f64)) {
    let largest = elements.iter().map(|(value, _)| value.abs()).fold(0.0, f64::max);
    let off = elements.iter().map(|(_, off)| *off).fold(0.0, f64::max);
    let least = f64::from(f32::MIN_POSITIVE);
    let code = |place: usize| {
        let (value, its_off) = elements.get(place).copied().unwrap_or_default();
        if largest == 0.0 {
            let code = nearest(levels, 0.0);
            return (code, 0);
        }
        if largest - off < 2.0 * least {
            return (nearest(levels, value / largest), 255);
        }
        let share = value / largest;
        let unsure = (its_off + share.abs() * off) / (largest - off) + 6.0 * U * share.abs();
        let (low, high) = (nearest(levels, share - unsure), nearest(levels, share + unsure));
        (nearest(levels, share), high - low)
    };
    let words = (0..WORDS).map(|word| {
        let (mut value, mut bound) = (0.0, 0.0);
        for byte in 0..4 {
            let (code, apart) = code(4 * word + byte);
            let place = f64::powi(256.0, byte as i32);
            value += code as f64 * place;
            bound += apart as f64 * place;
        }
        (value, bound)
    });
    (words.collect(), (largest, off))
}

/// A code of a block's moment, 0 the mean and 1 the squares.
fn code(words: &[u32], (block, moment): (usize, usize), place: usize) -> usize {
    let word = words[(block * 2 + moment) * WORDS + place / 4];
    (word >> (8 * (place % 4)) & 0xff) as usize
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let exact = |binding: usize| Expected::exact(args.tensors[binding].to_f64());
    let mut all: Vec<Expected> = (3..7).map(exact).collect();
    if args.tensors[1].get(2) == 0.0 {
        return all;
    }
    let factor = args.tensors[1].get(1);
    let tables = args.tensors[2].to_f32();
    let tables: Vec<&[f32]> = tables.chunks(256).collect();
    let words = args.tensors[4].u32s();
    let count = p.count as usize;
    for block in 0..count.div_ceil(BLOCK) {
        let mut moments = [Vec::new(), Vec::new()];
        for index in block * BLOCK..count.min((block + 1) * BLOCK) {
            let moment = |moment: usize| {
                let level = tables[moment][code(words, (block, moment), index % BLOCK)];
                f64::from(level) * args.tensors[5].get(2 * block + moment)
            };
            let gradient = args.tensors[0].get(index) * factor;
            let weight = args.tensors[3].get(index);
            let numbers = p.step.reference(gradient, weight, (moment(0), moment(1)));
            let (value, bound) = numbers[0];
            all[0].put(index, [(value, bound)]);
            if args.variant.constant("COPY") == 1 {
                all[3].put(index, [(value, 1.01 * bound + storing(DType::F16, value))]);
            }
            moments[0].push(numbers[1]);
            moments[1].push(numbers[2]);
        }
        for (moment, elements) in moments.iter().enumerate() {
            let (words, absmax) = encode(tables[moment], elements);
            all[1].put((block * 2 + moment) * WORDS, words);
            all[2].put(2 * block + moment, [absmax]);
        }
    }
    all
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let state = args.tensors[1].to_f32();
    if state[2] == 0.0 {
        return;
    }
    let gradient = args.tensors[0].to_f32();
    let tables = args.tensors[2].to_f32();
    let count = gradient.len();
    let mut weight = outputs.load(0, 0, count);
    let mut codes = outputs.words(1).to_vec();
    let mut absmax = outputs.load(2, 0, 2 * count.div_ceil(BLOCK));
    let blocks = codes.par_chunks_mut(2 * WORDS).zip(absmax.par_chunks_mut(2));
    let places = weight.par_chunks_mut(BLOCK).zip(gradient.par_chunks(BLOCK));
    places.zip(blocks).for_each(|((weight, gradient), (codes, absmax))| {
        let mut moments = [[0.0f32; BLOCK]; 2];
        for (moment, values) in moments.iter_mut().enumerate() {
            for (place, value) in values.iter_mut().enumerate().take(weight.len()) {
                let code = code(codes, (0, moment), place);
                *value = tables[256 * moment + code] * absmax[moment];
            }
        }
        let [first, second] = &mut moments;
        for (place, weight) in weight.iter_mut().enumerate() {
            let moments = (&mut first[place], &mut second[place]);
            p.step.take(gradient[place] * state[1], weight, moments);
        }
        for (moment, values) in moments.iter().enumerate() {
            let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            absmax[moment] = largest;
            let levels = &tables[256 * moment..256 * (moment + 1)];
            let words = codes[moment * WORDS..(moment + 1) * WORDS].iter_mut();
            for (word, values) in words.zip(values.chunks(4)) {
                let share = |value: f32| {
                    if largest < f32::MIN_POSITIVE { 0.0 } else { value / largest }
                };
                let code = |value: &f32| nearest(levels, f64::from(share(*value))) as u8;
                *word = u32::from_le_bytes(std::array::from_fn(|byte| code(&values[byte])));
            }
        }
    });
    outputs.store(0, 0, &weight);
    outputs.words(1).copy_from_slice(&codes);
    outputs.store(2, 0, &absmax);
    if args.variant.constant("COPY") == 1 {
        outputs.store(3, 0, &weight);
    }
}

fn case(count: usize, number: usize, factor: f32, note: &'static str) -> Case {
    let label = format!("count={count},settings={number},factor={factor}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(64);
        let mut gradient = random.values(count, 2.0);
        let weight = random.values(count, 1.0);
        let blocks = count.div_ceil(BLOCK);
        let mut codes: Vec<u32> = (0..blocks * 2 * WORDS).map(|_| random.word()).collect();
        let mut absmax = random.values(2 * blocks, 0.5);
        absmax.iter_mut().for_each(|value| *value = value.abs());
        match note {
            ",fresh" | ",tiny" => {
                codes.fill(0);
                absmax.fill(0.0);
            }
            // The first block's largest magnitude is negative, and another's a thousand times as large as its other elements.
            ",outlier" => {
                gradient[count / 2] = 2000.0;
                gradient[3] = -2000.0;
            }
            _ => {}
        }
        if note == ",tiny" {
            gradient.iter_mut().for_each(|value| *value *= 1e-20);
        }
        let (settings, t) = step::settings(number);
        let params = Params { count: count as u32, step: Step::new(&settings, t) };
        let host = |values: &[f32]| HostTensor::from_f32(DType::F32, &[count], values);
        let copied = if variant.constant("COPY") == 1 { count } else { 4 };
        params.case(vec![
            host(&gradient),
            step::state(factor, note != ",not finite"),
            levels(),
            host(&weight),
            HostTensor::from_u32(&[blocks, 2, WORDS], &codes),
            HostTensor::from_f32(DType::F32, &[blocks, 2], &absmax),
            HostTensor::from_f32(variant.output, &[copied], &random.values(copied, 1.0)),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let count = sizes.between(0, 1, 70) * sizes.between(1, 1, 70);
    let factor = [1.0, 0.125, 1e-3][sizes.between(3, 0, 2)];
    case(count, sizes.between(2, 0, 3), factor, "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 0, 1.0, ",fresh"),
        case(1001, 0, 0.125, ",fresh"),
        case(5002, 1, 1.0, ""),
        case(2048, 2, 0.5, ""),
        case(515, 3, 1.0, ""),
        case(700, 0, 1.0, ",outlier"),
        case(300, 0, 1.0, ",tiny"),
        case(300, 0, 1.0, ",fresh").with(Poison::Zeros),
        case(300, 2, 1.0, "").with(Poison::Zeros),
        case(301, 0, 1.0, ",not finite"),
        case(301, 0, 1.0, ",not finite").with(Poison::NaN),
        case(4096 * 4096, 0, 1.0, "").bench(),
    ]
}
