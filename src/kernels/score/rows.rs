//! `score/rows`: the importance of a weight's rows, that is of output channels: the sum over each of what its elements count
//! by a [`Form`] (Ma et al. 2023, LLM-Pruner, arXiv 2305.11627, section 3.2).

use super::Form;
use super::element::{self, Params};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "score/rows",
    source: include_str!("../../../shaders/score/rows.wgsl"),
    bindings: &[
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("gradient", Access::Read, Element::Is(DType::F32)),
        binding("fisher", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || {
        let both = |form: Form| [false, true].map(|subgroups| variant(form, subgroups));
        Form::ALL.into_iter().flat_map(both).collect()
    },
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost: element::cost,
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

fn variant(form: Form, subgroups: bool) -> Variant {
    Variant { subgroups, ..form.variant() }
}

/// Adds the importance of each row of `weight`, f32 (rows, columns), to `result`, f32 (rows), or writes it there.
///
/// `gradient` and `fisher`, the diagonal of the Fisher matrix, are f32 (rows, columns); each must be there where the form
/// needs it.
pub fn rows(
    device: &Device,
    form: Form,
    weight: &Tensor,
    gradient: Option<&Tensor>,
    fisher: Option<&Tensor>,
    result: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let variant = variant(form, device.capabilities().subgroups);
    element::run(
        device,
        (&KERNEL, variant),
        weight,
        (gradient, fisher),
        result,
        (accumulate, false),
    )
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (form, inputs) = (Form::of(args.variant), element::inputs(args));
    let columns = p.columns as usize;
    let row = |row: usize| {
        let before = args.tensors[3].get(row);
        if !p.window().contains(&row) {
            return (before, 0.0);
        }
        let before = if p.accumulate == 1 { before } else { 0.0 };
        element::expected(form, inputs, before, row * columns..(row + 1) * columns)
    };
    let rows = args.tensors[3].len();
    element::collected((0..rows).into_par_iter().map(row).collect())
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (form, inputs) = (Form::of(args.variant), element::inputs(args));
    let columns = p.columns as usize;
    let start = p.row_start as usize;
    let mut sums = if p.accumulate == 1 {
        outputs.load(0, start, p.rows as usize)
    } else {
        vec![0.0; p.rows as usize]
    };
    sums.par_iter_mut().enumerate().for_each(|(row, sum)| {
        let first = (start + row) * columns;
        *sum += element::quick(form, inputs, first..first + columns) as f32;
    });
    outputs.store(0, start, &sums);
}

fn random(sizes: &Sizes) -> Case {
    let (start, window) = (sizes.between(0, 0, 9), sizes.between(1, 1, 60));
    let rows = start + window + sizes.between(2, 0, 5);
    let note = ["", ",accumulate"][sizes.between(3, 0, 1)];
    let columns = sizes.between(4, 1, 700);
    element::case(true, (rows, columns), (start, window), note)
}

fn cases() -> Vec<Case> {
    let whole = |rows, columns, note| element::case(true, (rows, columns), (0, rows), note);
    vec![
        whole(13, 97, ""),
        whole(1, 1, ""),
        whole(7, 300, ",accumulate"),
        whole(2, 49_152, ""),
        element::case(true, (9, 40), (4, 3), ",accumulate"),
        whole(5, 40, "").with(Poison::Zeros),
        whole(5, 40, "").with(Poison::Infinity),
        whole(5, 40, "").with(Poison::NaN),
        // More rows than one dimension has workgroups, for one variant.
        whole(1051, 3, "").only(|its| *its == variant(Form::Mixed, false)),
        whole(4096, 8192, "").bench(),
    ]
}
