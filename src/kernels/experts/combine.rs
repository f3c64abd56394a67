//! `experts/combine`: what an expert made of its tokens, added to them: result[t] += share[t] branch[row of t]. Without shares it
//! is the gradient of gathering the rows. Experts go one after the other, so that the sum has one order.

use super::{Share, random_shares, random_tokens};
use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        width: u32,
        experts: u32,
        expert: u32,
        /// 1: rows are those of listed tokens; 0: of all tokens, in order.
        listed: u32,
        /// 1: times the expert's share.
        weighted: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "experts/combine",
    source: include_str!("../../../shaders/experts/combine.wgsl"),
    bindings: &[
        binding("branch", Access::Read, Element::Activation),
        binding("shares", Access::Read, Element::Is(DType::F32)),
        binding("token_of", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    variants: || vec![Variant::BASELINE, Variant::typed(DType::F16, DType::F32)],
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.rows as usize * p.width as usize).div_ceil(128))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.rows) * f64::from(p.width);
        Cost::new(2.0 * values, values * (8 + args.tensors[0].dtype.size()) as f64)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Adds `branch`, (rows, width), to `result`, f32 (tokens, width): each row to that of its token in the list, u32 (rows), which has
/// none twice; without one rows are tokens. Where a share is 0 the row may be anything.
pub fn combine(
    device: &Device,
    branch: &Tensor,
    share: Option<Share<'_>>,
    tokens: Option<&Tensor>,
    result: &Tensor,
) -> Result<()> {
    let width = result.len() / result.shape()[0];
    let params = Params {
        rows: (branch.len() / width) as u32,
        width: width as u32,
        experts: share.map_or(1, Share::experts) as u32,
        expert: share.map_or(0, |share| share.expert) as u32,
        listed: u32::from(tokens.is_some()),
        weighted: u32::from(share.is_some()),
    };
    let shares = match share {
        Some(share) => share.shares.clone(),
        None => device.allocate(DType::F32, &[1], "unused shares")?,
    };
    let tokens = match tokens {
        Some(tokens) => tokens.clone(),
        None => device.allocate(DType::U32, &[1], "an unused list")?,
    };
    let variant = Variant::typed(branch.dtype(), DType::F32);
    device.call(&KERNEL, variant, &params, &[branch, &shares, &tokens, result])
}

/// Of each row that is not left out: its number, its token, and the share.
fn shared(args: &Args<'_>) -> Vec<(usize, usize, f64)> {
    let p: Params = args.parameters();
    let row = |row: usize| {
        let token = if p.listed == 1 { args.tensors[2].u32s()[row] as usize } else { row };
        let share = match p.weighted {
            1 => args.tensors[1].get(token * p.experts as usize + p.expert as usize),
            _ => 1.0,
        };
        (share != 0.0).then_some((row, token, share))
    };
    (0..p.rows as usize).filter_map(row).collect()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let width = args.parameters::<Params>().width as usize;
    let before = args.tensors[3].to_f64();
    let mut expected = Expected::exact(before.clone());
    for (row, token, share) in shared(args) {
        let line = (0..width).map(|column| {
            let product = share * args.tensors[0].get(row * width + column);
            let value = before[token * width + column] + product;
            (value, 2.0 * U * (product.abs() + value.abs()) + DType::F32.underflow())
        });
        expected.put(token * width, line);
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let width = args.parameters::<Params>().width as usize;
    for (row, token, share) in shared(args) {
        let mut line = outputs.load(0, token * width, width);
        for (column, value) in line.iter_mut().enumerate() {
            *value += share as f32 * args.tensors[0].get(row * width + column) as f32;
        }
        outputs.store(0, token * width, &line);
    }
}

fn case(tokens: usize, rows: usize, width: usize, (listed, weighted): (bool, bool)) -> Case {
    let label =
        format!("tokens={tokens},rows={rows},width={width},listed={listed},weighted={weighted}");
    Case::new(label, move |variant: &Variant| {
        let experts = 5;
        let mut random = Random::new(63);
        let params = Params {
            rows: rows as u32,
            width: width as u32,
            experts: experts as u32,
            expert: 3,
            listed: u32::from(listed),
            weighted: u32::from(weighted),
        };
        let shares = random_shares(&mut random, tokens, experts);
        let listed = random_tokens(&mut random, tokens, rows);
        params.case(vec![
            HostTensor::from_f32(
                variant.activation,
                &[rows, width],
                &random.values(rows * width, 2.0),
            ),
            HostTensor::from_f32(DType::F32, &[tokens, experts], &shares),
            HostTensor::from_u32(&[rows], &listed),
            HostTensor::from_f32(DType::F32, &[tokens, width], &random.values(tokens * width, 2.0)),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let tokens = sizes.between(0, 1, 40);
    let listed = sizes.between(3, 0, 1) == 1;
    let rows = if listed { sizes.between(1, 1, tokens) } else { tokens };
    case(tokens, rows, sizes.between(2, 1, 300), (listed, sizes.between(4, 0, 1) == 1))
}

fn cases() -> Vec<Case> {
    vec![
        case(9, 5, 33, (true, true)),
        case(9, 9, 33, (false, true)),
        case(9, 5, 64, (true, false)),
        case(1, 1, 1, (false, true)),
        case(4, 4, 16, (false, true)).with(Poison::Zeros),
        case(4, 4, 16, (false, false)).with(Poison::NaN),
        case(4, 4, 16, (false, false)).with(Poison::Infinity),
        case(4, 4, 16, (false, true)).poisoned(1, Poison::NaN),
        case(3000, 2000, 70, (true, true)).only(|variant| variant.activation == DType::F32),
        case(4096, 1024, 4096, (true, true)).bench(),
    ]
}
