//! Inputs to try the products on.

use super::product::MatmulShape;
use super::{
    EPILOGUE_ADD, EPILOGUE_APART, EPILOGUE_BIAS, FUSED_GATES, Params, gate_epilogue, padded,
};
use crate::kernels::activation::Activation;
use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{BLOCK, Packed, WHOLE_ROW, WeightFormat};

/// The special feature of a product to try.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Special {
    /// Nothing.
    Nothing,
    /// The call covers a part of the tokens, of weight rows and of result columns; what is outside must stay.
    Part,
    /// A bias is added.
    Bias,
    /// The result's previous value is added.
    Add,
    /// The result holds a gate.
    Gate(Activation),
    /// The rows are those of three layers, whose results stand apart.
    Apart,
    /// The same, with a bias each.
    ApartBiased,
    /// The activations are poisoned.
    Activations(Poison),
    /// One row of the weight is NaN: whoever reads beyond the end of a row meets the next.
    NaNRow,
    /// Every integer and every code the largest there is: sums of integers come near the end of an i32.
    Largest,
}

impl Special {
    pub(super) fn label(self) -> String {
        match self {
            Special::Nothing => String::new(),
            Special::Part => ",part".into(),
            Special::Bias => ",bias".into(),
            Special::Add => ",add".into(),
            Special::Gate(activation) => format!(",gate={activation:?}"),
            Special::Apart => ",apart".into(),
            Special::ApartBiased => ",apart,bias".into(),
            Special::Activations(poison) => poison.label().into(),
            Special::NaNRow => ",row of NaN".into(),
            Special::Largest => ",largest".into(),
        }
    }

    /// The bits of the epilogue.
    pub(super) fn epilogue(self) -> u32 {
        match self {
            Special::Bias => EPILOGUE_BIAS,
            Special::Add => EPILOGUE_ADD,
            Special::Gate(activation) => gate_epilogue(activation),
            Special::Apart => EPILOGUE_APART,
            Special::ApartBiased => EPILOGUE_APART | EPILOGUE_BIAS,
            _ => 0,
        }
    }

    /// Where the rows of the second and of the third of three layers begin.
    pub(super) fn starts(self, rows: usize) -> (usize, usize) {
        match self {
            Special::Apart | Special::ApartBiased => (rows / 2, rows - rows / 4),
            _ => (0, 0),
        }
    }
}

/// A product to try, and what is special about it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) tokens: usize,
    pub(super) group: u32,
    pub(super) special: Special,
    /// Parts that the columns are split in.
    pub(super) splits: usize,
}

/// The tensors that stand before a call's scales, bias and result: the activations in the form that a variant takes, and the
/// codes in theirs. Of the activations, (all tokens, columns), and the weight, whose codes alone count.
pub(super) type Form = fn(&Shape, &Variant, &[f32], &Packed) -> Vec<HostTensor>;

impl Shape {
    /// A product of so many rows, columns and tokens, whose scales are those of groups of so many columns.
    pub(super) fn new(rows: usize, columns: usize, tokens: usize, group: u32) -> Self {
        Self { rows, columns, tokens, group, special: Special::Nothing, splits: 1 }
    }

    /// That of a product, its columns split in so many parts.
    pub fn of(shape: &MatmulShape, splits: u32) -> Self {
        let group = shape.weight.group_size;
        Self {
            splits: splits as usize,
            ..Self::new(shape.rows, shape.columns, shape.tokens, group)
        }
    }

    /// A random one of few tokens, in groups of those sizes.
    pub(super) fn random(sizes: &Sizes, groups: [u32; 4]) -> Self {
        let columns = padded(sizes.between(1, 1, 1300)) - sizes.between(2, 0, 3);
        let (rows, tokens) = (sizes.between(0, 1, 100), sizes.between(3, 1, 5));
        Self::new(rows, columns, tokens, groups[sizes.between(4, 0, 3)])
    }

    /// The same with something special.
    pub(super) fn with(self, special: Special) -> Self {
        Self { special, ..self }
    }

    /// The same with its columns split in parts, each part's sums for themselves.
    pub(super) fn split(self, splits: usize) -> Self {
        Self { splits, ..self }
    }

    /// The case's text.
    fn label(&self) -> String {
        let (rows, columns, tokens, group) = (self.rows, self.columns, self.tokens, self.group);
        let special = self.special.label();
        let label = format!("rows={rows},columns={columns},tokens={tokens},group={group}{special}");
        match self.splits {
            1 => label,
            splits => format!("{label},splits={splits}"),
        }
    }

    /// The case of a kernel that takes its operands in these forms.
    pub(super) fn case(self, form: Form) -> Case {
        Case::new(self.label(), move |variant: &Variant| self.data(variant, form))
    }

    fn data(&self, variant: &Variant, form: Form) -> CaseData {
        let Shape { rows, columns, tokens, special, .. } = *self;
        let mut random = Random::new(3);
        let (before, skipped, offset, stride) = match special {
            Special::Part => (2, 4, 3, rows + 5),
            _ => (0, 0, 0, rows),
        };
        let mut packed = weights::random(&mut random, variant, skipped + rows, columns, self.group);
        let all = before + tokens + before;
        let mut x =
            HostTensor::from_f32(DType::F32, &[all, columns], &random.values(all * columns, 1.0));
        match special {
            Special::Activations(poison) => poison.apply(&mut x, columns),
            Special::NaNRow => {
                let words = packed.codes.len() / (skipped + rows);
                packed.codes[3 * words..4 * words].fill(0x7fff_7fff);
            }
            Special::Largest => {
                x.words.fill(127.0f32.to_bits());
                // Of ternary codes, two bits each, the largest is 2: a weight of 1.
                let ternary = variant.weight.is_some_and(|weight| weight.name == "ternary");
                packed.codes.fill(if ternary { 0xaaaa_aaaa } else { u32::MAX });
            }
            _ => {}
        }
        let epilogue = special.epilogue();
        let (second, third) = special.starts(rows);
        let biases = if epilogue & EPILOGUE_BIAS > 0 { stride } else { 1 };
        let bias = random.values(biases, 1.0);
        let params = Params {
            rows: rows as u32,
            row_start: skipped as u32,
            columns: columns as u32,
            tokens: tokens as u32,
            token_start: before as u32,
            result_start: (before / 2) as u32,
            out_stride: stride as u32,
            out_offset: offset as u32,
            epilogue,
            splits: self.splits as u32,
            second: second as u32,
            third: third as u32,
            layout: Layout::new(packed.format, columns),
        };
        let lines = all * self.splits;
        let size = match special {
            Special::Gate(_) => 6.0,
            _ => 1.0,
        };
        let old = random.values(lines * stride, size);
        let [_, scales] = weights::host(&packed);
        let codes =
            Packed { format: WeightFormat::grouped(packed.format.ty, self.group), ..packed };
        let mut tensors = form(self, variant, &x.to_f32(), &codes);
        tensors.extend([
            scales,
            HostTensor::from_f32(DType::F32, &[bias.len()], &bias),
            HostTensor::from_f32(variant.output, &[lines, stride], &old),
        ]);
        params.case(tensors)
    }
}

/// The case of a kernel that takes activations and codes as they are.
pub(super) fn plain(shape: Shape) -> Case {
    shape.case(|shape, variant, x, weight| {
        let (columns, stride) = (shape.columns, padded(shape.columns));
        let rows = padded_rows(x, columns);
        let [codes, _] = weights::host(weight);
        let x = HostTensor::from_f32(variant.activation, &[x.len() / columns, stride], &rows);
        vec![x, codes]
    })
}

/// Rows of activations with zeros behind them.
fn padded_rows(x: &[f32], columns: usize) -> Vec<f32> {
    let mut rows = vec![0.0; x.len() / columns * padded(columns)];
    for (target, line) in rows.chunks_mut(padded(columns)).zip(x.chunks(columns)) {
        target[..columns].copy_from_slice(line);
    }
    rows
}

/// A product of 37 rows and 64 columns with something special.
pub(super) fn special(special: Special, tokens: usize) -> Shape {
    Shape::new(37, 64, tokens, WHOLE_ROW).with(special)
}

/// Products with a bias, with what stands there added, of several layers, and with a gate of each activation.
pub(super) fn epilogues(tokens: usize) -> impl Iterator<Item = Shape> {
    let gates = FUSED_GATES.map(Special::Gate);
    let all = [Special::Bias, Special::Add, Special::ApartBiased].into_iter().chain(gates);
    all.map(move |one| special(one, tokens))
}

/// Products for kernels of few tokens.
pub(super) fn few(case: fn(Shape) -> Case) -> Vec<Case> {
    let poisoned =
        |columns, poison| Shape::new(9, columns, 1, WHOLE_ROW).with(Special::Activations(poison));
    let shapes = [
        Shape::new(5, 97, 1, WHOLE_ROW),
        Shape::new(1, 4, 1, 128),
        special(Special::Part, 5),
        poisoned(70, Poison::NaN),
        poisoned(64, Poison::Zeros),
    ];
    shapes.into_iter().chain(epilogues(2)).map(case).collect()
}

/// Products for kernels of few tokens whose codes are bit planes.
pub(super) fn of_planes(case: fn(Shape) -> Case) -> Vec<Case> {
    let shapes = [
        // The last group is one column.
        Shape::new(5, 97, 1, BLOCK as u32),
        Shape::new(70, 576, 3, 32),
        Shape::new(33, 1160, 2, 64),
    ];
    let mut cases = few(case);
    cases.extend(shapes.map(case));
    cases
}
