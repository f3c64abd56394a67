//! `score/columns`: the importance of a weight's columns, that is of input channels: the sum down each of what its elements
//! count by a [`Form`] (Ma et al. 2023, LLM-Pruner, arXiv 2305.11627, section 3.2). Added in a fixed order.

use super::Form;
use super::element::{self, Params};
use crate::kernels::prelude::*;

/// Columns of a workgroup, as in the shader.
pub(super) const COLUMNS: usize = 32;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "score/columns",
    source: include_str!("../../../shaders/score/columns.wgsl"),
    bindings: &[
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("gradient", Access::Read, Element::Is(DType::F32)),
        binding("fisher", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || Form::ALL.map(Form::variant).to_vec(),
    groups: |args| fold((args.parameters::<Params>().columns as usize).div_ceil(COLUMNS)),
    cost: element::cost,
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Adds the importance of each column of `weight`, f32 (rows, columns), to `result`, f32 (columns), or writes it there.
///
/// `gradient` and `fisher`, the diagonal of the Fisher matrix, are f32 (rows, columns); each must be there where the form
/// needs it.
pub fn columns(
    device: &Device,
    form: Form,
    weight: &Tensor,
    gradient: Option<&Tensor>,
    fisher: Option<&Tensor>,
    result: &Tensor,
    accumulate: bool,
) -> Result<()> {
    element::run(
        device,
        (&KERNEL, form.variant()),
        weight,
        (gradient, fisher),
        result,
        (accumulate, true),
    )
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (form, inputs) = (Form::of(args.variant), element::inputs(args));
    let columns = p.columns as usize;
    let column = |column: usize| {
        let before = if p.accumulate == 1 { args.tensors[3].get(column) } else { 0.0 };
        let places = p.window().map(|row| row * columns + column);
        element::expected(form, inputs, before, places)
    };
    element::collected((0..columns).into_par_iter().map(column).collect())
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (form, [weight, gradient, fisher]) = (Form::of(args.variant), element::inputs(args));
    let columns = p.columns as usize;
    let mut sums = if p.accumulate == 1 { outputs.load(0, 0, columns) } else { vec![0.0; columns] };
    // A stretch of columns at a time, so that lines of memory are read once.
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(index, sums)| {
        let mut totals = vec![0.0; sums.len()];
        for row in p.window() {
            let first = row * columns + index * COLUMNS;
            for (at, total) in (first..).zip(&mut totals) {
                let term = element::element(form, weight[at], gradient[at], fisher[at]);
                *total += f64::from(term);
            }
        }
        for (sum, total) in sums.iter_mut().zip(totals) {
            *sum += total as f32;
        }
    });
    outputs.store(0, 0, &sums);
}

fn random(sizes: &Sizes) -> Case {
    let (start, window) = (sizes.between(0, 0, 9), sizes.between(1, 1, 200));
    let rows = start + window + sizes.between(2, 0, 5);
    let note = ["", ",accumulate"][sizes.between(3, 0, 1)];
    let columns = sizes.between(4, 1, 300);
    element::case(false, (rows, columns), (start, window), note)
}

fn cases() -> Vec<Case> {
    let whole = |rows, columns, note| element::case(false, (rows, columns), (0, rows), note);
    vec![
        whole(13, 97, ""),
        whole(1, 1, ""),
        whole(7, 300, ",accumulate"),
        whole(20_011, 3, ""),
        element::case(false, (29, 40), (4, 18), ",accumulate"),
        whole(5, 40, "").with(Poison::Zeros),
        whole(5, 40, "").with(Poison::Infinity),
        whole(5, 40, "").with(Poison::NaN),
        whole(4096, 8192, "").bench(),
    ]
}
