//! `attention/bias_grad`: the gradient of a bias of scores by distance: of bucket b and head h the sum of p_j (dp_j - delta) over all
//! tokens and the keys whose distance from them is in b, with p_j and dp_j as in [`attention/query_grad`](super::query_grad). Each
//! tile of tokens has a part of it, and [`attention/group_sum`](super::group_sum) adds the parts up in their order, so that every
//! run gives the same bits.

use super::backward::{self, Inputs, Params, dot, owners, variant};
use super::bias::Bias;
use super::examples::{self, Example, Shape};
use super::group_sum::group_sum;
use super::query_grad::rows;
use super::{Attention, Mask, score};
use crate::kernels::copy::pad::cut;
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/bias_grad",
    source: include_str!("../../../shaders/attention/bias_grad.wgsl"),
    bindings: &[
        binding("query", Access::Read, Element::Activation),
        binding("key", Access::Read, Element::Activation),
        binding("value", Access::Read, Element::Activation),
        binding("grad", Access::Read, Element::Activation),
        binding("lse_delta", Access::Read, Element::Is(DType::F32)),
        binding("places", Access::Read, Element::Is(DType::U32)),
        binding("spans", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    // The number of columns decides nothing but how many products there are.
    variants: || {
        let of = |dtype| Variant { output: DType::F32, ..variant(dtype, 1) };
        vec![of(DType::F32), of(DType::F16)]
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tiles as usize * p.heads as usize)
    },
    cost: |args| backward::cost(args, 4.0, false),
    reference,
    cpu: Some(cpu),
    cases,
    random: |sizes: &Sizes| case(examples::random_shape(sizes).with_bias()),
    ..Kernel::BASE
};

/// The gradient of a bias' table, f32 (buckets, heads), from query, key, value, the result's gradient and its lse_delta, of so many
/// sequences, tokens of each and places of a cache.
pub(super) fn bias_grad(
    device: &Device,
    [query, key, value, grad, known]: [&Tensor; 5],
    heads: Attention,
    (bias, mask): (&Bias, Mask),
    sizes: (usize, usize, usize),
) -> Result<Tensor> {
    let variant = Variant { output: DType::F32, ..variant(query.dtype(), 1) };
    let (sequences, each, capacity) = sizes;
    let (tile, shape) = (owners(&variant), bias.table().shape());
    let (tiles, own) = (sequences * each.div_ceil(tile), shape[0] * shape[1]);
    // Parts are added up in whole vectors of four.
    let row = own.next_multiple_of(4);
    let parts = device.allocate(DType::F32, &[tiles, row], "parts of a bias' gradient")?;
    let mask = Mask { buckets: shape[0] as u32, row: row as u32, ..mask };
    let operations = 4.0 * (tile * heads.query * heads.dim * capacity) as f64;
    let step = ((device.call_limit().operations / operations) as usize).max(1);
    for start in (0..tiles).step_by(step) {
        let params = Params::new(&heads, sizes, (start, step.min(tiles - start)));
        let params = Params { mask, ..params };
        let tensors = [query, key, value, grad, known, bias.places(), bias.spans(), &parts];
        device.call(&KERNEL, variant.clone(), &params, &tensors)?;
    }
    let sum = device.allocate(DType::F32, &[row], "gradient of a bias")?;
    group_sum(device, &parts, row, &sum)?;
    match own == row {
        true => Ok(sum.reshaped(shape)),
        false => cut(device, &sum, row, own, shape),
    }
}

/// The bucket of a distance.
fn bucket(spans: &[u32], distance: usize) -> usize {
    let holds = |span: &[u32]| (span[0] as usize..=span[1] as usize).contains(&distance);
    spans.chunks_exact(2).position(holds).expect("a distance is in a bucket")
}

/// Of each (token, head) of a call, the place of the tile's part that has its head's first bucket.
fn places<'a>(
    args: &'a Args<'_>,
    p: &'a Params,
) -> impl IndexedParallelIterator<Item = (((usize, usize), usize), usize)> + use<'a> {
    let tile = move |(sequence, order): (usize, usize)| {
        let owners = owners(args.variant);
        let last = (p.tokens_per_sequence as usize).div_ceil(owners) - 1;
        (last - order / owners) * p.sequences as usize + sequence
    };
    let at = move |(token, head)| ((token, head), tile(token) * p.mask.row as usize + head);
    rows(args).into_par_iter().map(at)
}

/// Sums of scores' gradients are off by what these are, and by a rounding for each term; terms that are 0 round nothing.
fn reference(args: &Args<'_>) -> Vec<Expected> {
    let inputs = Inputs::new(args);
    let (p, spans) = (inputs.p, args.tensors[6].u32s());
    let (heads, buckets) = (p.heads as usize, p.mask.buckets as usize);
    let mut expected = Expected::exact(args.tensors[7].to_f64());
    let lines: Vec<(usize, Vec<(f64, f64)>)> = places(args, &p)
        .map(|((token, head), at)| {
            let mut sums = vec![(0.0, 0.0); buckets];
            let end = inputs.places[token.0];
            for place in p.seen(end, token.1) {
                let (value, error) = inputs.pair(token, head, place).score_grad;
                let (sum, bound) = &mut sums[bucket(spans, p.mask.distance(end, token.1, place))];
                let terms = owners(args.variant) * p.seen(end, token.1).len();
                *sum += value;
                *bound += error + gamma(terms) * (value.abs() + error);
            }
            (at, sums)
        })
        .collect();
    for (at, _) in &lines {
        (0..buckets).for_each(|bucket| expected.put(at + bucket * heads, [(0.0, 0.0)]));
    }
    for (at, sums) in lines {
        for (bucket, (sum, bound)) in sums.into_iter().enumerate() {
            expected.values[at + bucket * heads] += sum;
            expected.bounds[at + bucket * heads] += bound;
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.head_dim as usize;
    let [query, key, value, grad, known] = [0, 1, 2, 3, 4].map(|b| args.tensors[b].to_f32());
    let (words, spans) = (args.tensors[5].u32s(), args.tensors[6].u32s());
    let (heads, buckets) = (p.heads as usize, p.mask.buckets as usize);
    let of_distance: Vec<usize> =
        (0..p.mask.distances as usize).map(|distance| bucket(spans, distance)).collect();
    let lines: Vec<(usize, Vec<f32>)> = places(args, &p)
        .map(|((token, head), at_sums)| {
            let (at, row) = (p.token(token, head), 2 * p.row(token, head));
            let (query, grad) = (&query[at..at + columns], &grad[at..at + columns]);
            let (mut sums, end) = (vec![0.0; buckets], words[token.0]);
            for place in p.seen(end, token.1) {
                let there = p.place((token.0, place), head / p.group());
                let bias = p.bias((end, words), head, token.1, place);
                let product = dot(query, &key[there..there + columns]);
                let score = score(product * p.scale + bias, p.soft_cap);
                let weight_grad = dot(grad, &value[there..there + columns]);
                let weight = (score - known[row]).exp();
                sums[of_distance[p.mask.distance(end, token.1, place)]] +=
                    weight * (weight_grad - known[row + 1]) * p.slope(score);
            }
            (at_sums, sums)
        })
        .collect();
    // The parts of tiles, of each the tokens' one after the other.
    let mut parts: std::collections::BTreeMap<usize, f32> = Default::default();
    for (at, sums) in lines {
        for (bucket, sum) in sums.into_iter().enumerate() {
            *parts.entry(at + bucket * heads).or_default() += sum;
        }
    }
    parts.into_iter().for_each(|(at, sum)| outputs.store(0, at, &[sum]));
}

fn case(shape: Shape) -> Case {
    let case = examples::case(shape, false, |example: &Example, variant: &Variant| {
        let [buckets, heads, tiles] = example.parts_of_table(owners(variant));
        let row = (buckets * heads).next_multiple_of(4);
        let before = Random::new(75).values(tiles * row, 1.0);
        vec![
            example.tokens(&example.query, variant),
            example.cache(&example.key, variant),
            example.cache(&example.value, variant),
            example.tokens(&example.grad, variant),
            example.known(&example.lse_delta),
            example.places(),
            example.spans(),
            HostTensor::from_f32(DType::F32, &[tiles, row], &before),
        ]
    });
    let make = case.make;
    let made = move |variant: &Variant| {
        let mut data = make(variant);
        let p: Params = bytemuck::pod_read_unaligned(&data.parameters);
        let (buckets, row) = (data.tensors[6].shape[0] as u32, data.tensors[7].shape[1] as u32);
        let params = Params { mask: Mask { buckets, row, ..p.mask }, ..p };
        data.parameters = bytemuck::bytes_of(&params).to_vec();
        data
    };
    Case { make: Box::new(made), fits: |_| true, ..case }
}

fn cases() -> Vec<Case> {
    let biased = examples::shapes().into_iter().filter(Shape::is_biased);
    let mut cases: Vec<Case> = biased.map(case).collect();
    cases.push(case(examples::shapes()[0].with_bias()).poisoned(7, Poison::Infinity));
    cases.push(case(examples::shapes()[8].with_bias()));
    cases.push(case(examples::LARGE).bench());
    cases
}
