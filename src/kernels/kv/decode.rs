//! `kv/decode`: the first rows of each sequence's cache as plain numbers, for kernels that read those.

use super::{CACHE_TYPES, Cached, decode_rows};
use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::kernels::weights;

params! {
    struct Params {
        sequences: u32,
        capacity: u32,
        length: u32,
        width: u32,
        layout: Layout,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "kv/decode",
    source: include_str!("../../../shaders/kv/decode.wgsl"),
    bindings: &[
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    imports: super::fragment,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let to =
            |output| super::decoding_variants().map(move |variant| Variant { output, ..variant });
        to(DType::F32).chain(to(DType::F16)).collect()
    },
    groups: |args| fold((args.tensors[2].len() / 8).div_ceil(64)),
    cost: |args| {
        let p: Params = args.parameters();
        let (values, size) = (args.tensors[2].len() as f64, args.tensors[2].dtype.size() as f64);
        let words = f64::from(p.sequences * p.length)
            * f64::from(p.layout.code_words + p.layout.scale_words);
        Cost::new(2.0 * values, size * values + 4.0 * words)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
};

/// The first `length` rows of each sequence, (sequences, length, width), in a type. Rows are a multiple of eight columns wide.
pub fn decode(device: &Device, cache: &Cached, length: usize, output: DType) -> Result<Tensor> {
    let sequences = cache.codes.shape()[0];
    let shape = [sequences, length, cache.width()];
    let result = device.allocate(output, &shape, "decoded keys or values")?;
    let params = Params {
        sequences: sequences as u32,
        capacity: cache.capacity() as u32,
        length: length as u32,
        width: cache.width() as u32,
        layout: cache.layout(),
    };
    let variant = Variant { output, ..weights::variant(cache.weight()) };
    let (codes, scales) = cache.words();
    device.call(&KERNEL, variant, &params, &[&codes, scales, &result])?;
    Ok(result)
}

/// The rows of each sequence that are decoded.
fn lines<'a>(args: &'a Args<'a>) -> impl ParallelIterator<Item = Vec<f32>> + 'a {
    let p: Params = args.parameters();
    (0..p.sequences as usize).into_par_iter().map(move |sequence| {
        let first = sequence * p.capacity as usize;
        let rows = first..first + p.length as usize;
        decode_rows(args, (0, 1), (p.layout, p.width as usize), rows)
    })
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let mut expected = Expected::default();
    for value in lines(args).collect::<Vec<_>>().concat() {
        // Of numbers in f32 nothing is lost.
        let exact = args.variant.output == DType::F32;
        let bound = if exact { 0.0 } else { storing(args.variant.output, f64::from(value)) };
        expected.push(f64::from(value), bound);
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    outputs.store(0, 0, &lines(args).collect::<Vec<_>>().concat());
}

/// Words of a cache of that many rows, of heads of `head_dim` columns, `width` in all, whose rows `written` are random values
/// and whose others may hold anything: codes and scales.
pub(in crate::kernels) fn words(
    random: &mut Random,
    variant: &Variant,
    (rows, width, head_dim): (usize, usize, usize),
    written: impl Fn(usize) -> bool,
) -> (Layout, [HostTensor; 2]) {
    let found = CACHE_TYPES.iter().find(|ty| Some(ty.weight()) == variant.weight);
    let ty = found.expect("a variant of a kernel with a cache names its type");
    let format = ty.format(head_dim).expect("heads of whole groups");
    let layout = super::layout(ty, format, width);
    if let Some(dtype) = ty.dtype() {
        let mut values = random.values(rows * width, 1.0);
        for (row, line) in values.chunks_exact_mut(width).enumerate() {
            if !written(row) {
                line.fill(f32::NAN);
            }
        }
        let HostTensor { words, .. } = HostTensor::from_f32(dtype, &[rows, width], &values);
        let codes = HostTensor::from_u32(&[words.len()], &words);
        return (layout, [codes, HostTensor::from_u32(&[1], &[0])]);
    }
    let mut packed = weights::random(random, variant, rows, width, format.group_size);
    let scale_words = layout.scale_words as usize;
    for (row, line) in packed.scales.chunks_exact_mut(scale_words).enumerate() {
        if !written(row) {
            line.fill(0x7e00_7e00);
        }
    }
    (layout, weights::host(&packed))
}

fn case(
    sequences: usize,
    (capacity, length): (usize, usize),
    heads: usize,
    head_dim: usize,
) -> Case {
    let label = format!(
        "sequences={sequences},capacity={capacity},length={length},heads={heads},head_dim={head_dim}"
    );
    Case::new(label, move |variant: &Variant| {
        let (rows, width) = (sequences * capacity, heads * head_dim);
        let sizes = (rows, width, head_dim);
        let (layout, [codes, scales]) = words(&mut Random::new(32), variant, sizes, |_| true);
        let params = Params {
            sequences: sequences as u32,
            capacity: capacity as u32,
            length: length as u32,
            width: width as u32,
            layout,
        };
        let result = HostTensor::zeros(variant.output, &[sequences, length, width]);
        params.case(vec![codes, scales, result])
    })
}

fn random(sizes: &Sizes) -> Case {
    let length = sizes.between(1, 1, 30);
    let capacity = length + sizes.between(2, 0, 20);
    case(
        sizes.between(0, 1, 3),
        (capacity, length),
        sizes.between(3, 1, 4),
        16 * sizes.between(4, 1, 8),
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(1, (1, 1), 1, 16),
        case(2, (7, 5), 3, 32),
        case(3, (12, 12), 2, 80),
        case(1, (40, 33), 4, 64),
        case(1, (4096, 4096), 8, 128).bench(),
    ]
}
