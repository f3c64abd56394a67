//! What [`score/rows`](super::rows) and [`score/columns`](super::columns) share: their parameters and calls, what an element
//! counts, the reference of a sum of them, and their cases.

use super::Form;
use crate::device::View;
use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        row_start: u32,
        accumulate: u32,
    }
}

impl Params {
    /// The rows that a call sums.
    pub(super) fn window(&self) -> std::ops::Range<usize> {
        self.row_start as usize..(self.row_start + self.rows) as usize
    }
}

pub(super) fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let values = f64::from(p.rows) * f64::from(p.columns);
    Cost::new(6.0 * values, values * bytes(Form::of(args.variant)))
}

/// Bytes that one element takes from memory.
fn bytes(form: Form) -> f64 {
    4.0 * (1 + u8::from(form.needs_gradient()) + u8::from(form.needs_fisher())) as f64
}

/// Runs a kernel of the two on a weight of (rows, columns), in as many calls as its size asks for. `carried`: the calls
/// after the first add to what it left.
pub(super) fn run(
    device: &Device,
    (kernel, variant): (&'static Kernel, Variant),
    weight: &Tensor,
    (gradient, fisher): (Option<&Tensor>, Option<&Tensor>),
    result: &Tensor,
    (accumulate, carried): (bool, bool),
) -> Result<()> {
    let form = Form::of(&variant);
    assert!(
        !form.needs_gradient() || gradient.is_some_and(|its| its.len() == weight.len()),
        "{form:?} has a gradient for each weight"
    );
    assert!(
        !form.needs_fisher() || fisher.is_some_and(|its| its.len() == weight.len()),
        "{form:?} has a place on the Fisher diagonal for each weight"
    );
    let (rows, columns) = (weight.shape()[0], weight.shape()[1]);
    let step = match carried {
        // Sums of a column must not depend on how quick the device is: always the same cut.
        true => SUMMED_ROWS,
        false => (device.call_limit().bytes / (bytes(form) * columns as f64)) as usize,
    };
    let step = step.clamp(1, rows.max(1));
    for start in (0..rows).step_by(step) {
        let params = Params {
            rows: step.min(rows - start) as u32,
            columns: columns as u32,
            row_start: start as u32,
            accumulate: u32::from(accumulate || carried && start > 0),
        };
        // The weight stands in for what the form does not read.
        let tensors = [weight, gradient.unwrap_or(weight), fisher.unwrap_or(weight), result];
        device.call(kernel, variant.clone(), &params, &tensors)?;
    }
    Ok(())
}

/// Rows that one call adds up: short enough for a submit on any GPU, and the same on all.
pub(super) const SUMMED_ROWS: usize = 2048;

/// Weight, gradient and Fisher diagonal of a call.
pub(super) fn inputs<'a>(args: &Args<'a>) -> [&'a [f32]; 3] {
    let floats = |view: &View<'a>| bytemuck::cast_slice::<u32, f32>(view.words);
    [0, 1, 2].map(|index| floats(&args.tensors[index]))
}

/// The sum over these places, in f32's terms added in f64: for the CPU device.
pub(super) fn quick(
    form: Form,
    [weight, gradient, fisher]: [&[f32]; 3],
    places: impl Iterator<Item = usize>,
) -> f64 {
    places.map(|at| f64::from(element(form, weight[at], gradient[at], fisher[at]))).sum()
}

pub(super) fn element(form: Form, w: f32, g: f32, f: f32) -> f32 {
    match form {
        Form::L1 => w.abs(),
        Form::L2 => w * w,
        Form::First => (w * g).abs(),
        Form::Second => w * w * f,
        Form::Mixed => (w * g - 0.5 * (w * w * f)).abs(),
        Form::Product => w * g,
    }
}

/// The sum over these places and what stood before, with its bound.
///
/// An element is rounded four times at most; what of it is below the normal range may be taken for zero, before it is
/// multiplied by the rest.
pub(super) fn expected(
    form: Form,
    [weight, gradient, fisher]: [&[f32]; 3],
    before: f64,
    places: impl Iterator<Item = usize>,
) -> (f64, f64) {
    let (mut value, mut magnitude, mut small, mut terms) = (0.0, 0.0, 0.0, 0);
    for at in places {
        let w = f64::from(weight[at]);
        let (g, f) = (f64::from(gradient[at]), f64::from(fisher[at]));
        let (term, size) = match form {
            Form::L1 => (w.abs(), w.abs()),
            Form::L2 => (w.powi(2), w.powi(2)),
            Form::First => ((w * g).abs(), (w * g).abs()),
            Form::Second => (w.powi(2) * f, w.powi(2) * f.abs()),
            Form::Mixed => {
                ((w * g - w.powi(2) * f / 2.0).abs(), (w * g).abs() + w.powi(2) * f.abs() / 2.0)
            }
            Form::Product => (w * g, (w * g).abs()),
        };
        value += term;
        magnitude += size;
        small += (1.0 + w.abs()).powi(2) * (1.0 + g.abs() + f.abs());
        terms += 1;
    }
    value += before;
    let bound = gamma(terms + 5) * (magnitude + before.abs())
        + small * DType::F32.underflow()
        + storing(DType::F32, value);
    (value, bound)
}

/// The pairs as an output.
pub(super) fn collected(pairs: Vec<(f64, f64)>) -> Vec<Expected> {
    let (values, bounds) = pairs.into_iter().unzip();
    vec![Expected { values, bounds }]
}

/// A case of either kernel: the `window` of (rows, columns), summed to as many results as a row has columns or a column
/// rows.
pub(super) fn case(
    by_row: bool,
    (rows, columns): (usize, usize),
    (start, window): (usize, usize),
    note: &'static str,
) -> Case {
    let label = format!("rows={rows},columns={columns},start={start},window={window}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(51);
        let weight = random.values(rows * columns, 0.5);
        let gradient = random.values(rows * columns, 2.0);
        let fisher: Vec<f32> = random.values(rows * columns, 3.0);
        let fisher: Vec<f32> = fisher.into_iter().map(f32::abs).collect();
        let params = Params {
            rows: window as u32,
            columns: columns as u32,
            row_start: start as u32,
            accumulate: u32::from(note == ",accumulate"),
        };
        let results = if by_row { rows } else { columns };
        let before = random.values(results, 10.0);
        let host = |values: &[f32]| HostTensor::from_f32(DType::F32, &[rows, columns], values);
        params.case(vec![
            host(&weight),
            host(&gradient),
            host(&fisher),
            HostTensor::from_f32(DType::F32, &[results], &before),
        ])
    })
}
