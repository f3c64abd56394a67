//! The graph that can be run backwards: reverse mode over kernel calls. A backward rule is a few calls of kernels
//! (`matmul::backward`, `norm/rms_grad`, ...), which know no tape; here they are recorded beside their forward operations.
//!
//! A tape is short: a block is recorded, run back and dropped. A weight's gradient is handed out as soon as it is known, so
//! that never more than one is held. Activations and their gradients are f32, and take the type of products (f16, where that is
//! asked for) on their way into one, and on matrix units into attention: rounded anywhere else too, gradients were off by 2.3e-3
//! instead of 1.5e-3. In f16 small gradients would underflow, so the caller scales the loss, and they are scaled back when
//! handed out.
//!
//! Products wait until their result is used: one that is added to the residual stream runs with the sum, and the last of a block
//! that is recomputed only for its gradients never runs.

use std::cell::OnceCell;
use std::rc::Rc;

use super::routed::Routed;
use super::token_split::TokenSplit;
use super::{
    Activation, Adapter, Attention, BlockWeights, Experts, Factor, Graph, Linear, PairedRows, Part,
    PositionBias, RmsNormWeight, Slot,
};
use crate::device::{Device, HostTensor, Tensor};
use crate::error::Result;
use crate::kernels::attention::backward as attention;
use crate::kernels::attention::causal::forward as attention_forward;
use crate::kernels::attention::{Seen, coop};
use crate::kernels::copy::cast::{cast, scaled};
use crate::kernels::embed::gather::gather;
use crate::kernels::embed::scatter::scatter;
use crate::kernels::experts::balance::balance;
use crate::kernels::experts::balance_grad::balance_grad;
use crate::kernels::experts::combine::combine;
use crate::kernels::experts::combine_grad::combine_grad;
use crate::kernels::experts::route_grad::route_grad;
use crate::kernels::gate::activate::activate;
use crate::kernels::gate::activate_grad::activate_grad;
use crate::kernels::gate::glu::glu;
use crate::kernels::gate::glu_grad::glu_grad;
use crate::kernels::logits::soft_cap::soft_cap;
use crate::kernels::logits::soft_cap_grad::soft_cap_grad;
use crate::kernels::mask::dropout::dropout;
use crate::kernels::matmul::{Destination, Input, backward, linear as kernel_linear};
use crate::kernels::matrix::Matrix;
use crate::kernels::norm::center::center;
use crate::kernels::norm::gain_grad::gain_grad;
use crate::kernels::norm::rms::rms;
use crate::kernels::norm::rms_grad::rms_grad;
use crate::kernels::norm::shift::shift;
use crate::kernels::quantize::inputs::inputs;
use crate::kernels::residual::add::add;
use crate::kernels::rope::rotate::{Target, rotate};
use crate::kernels::score::Form;
use crate::kernels::score::rows::rows as squared_rows;
use crate::tensor::DType;

/// The gradient of a tensor of the model, or a part of it.
#[derive(Clone, Debug)]
pub struct Gradient {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// Which part, from 0. The parts of a gradient add up to it.
    pub part: usize,
    /// f32, of the tensor's shape.
    pub values: Tensor,
    /// The tensor itself.
    pub weight: Parameter,
}

/// The name under which [`Parameter::Output`] of a module is asked for and handed out.
pub fn output_name(module: &str) -> String {
    format!("{module}.output")
}

/// A tensor of the model, on its device.
#[derive(Clone, Debug)]
pub enum Parameter {
    /// A matrix as it is stored.
    Matrix(Matrix),
    /// The weight of a norm or a bias, f32.
    Vector(Tensor),
    /// None: the gradient is that of what a linear layer gives, of each of the part's tokens the sum of its squares, f32 (tokens).
    Output,
}

/// Who gets the gradients, each part once, in the order in which they are known.
pub type Sink<'s> = dyn FnMut(Gradient) -> Result<()> + 's;

/// The types a tape computes in, and the scale and parts of the gradients it hands out.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// The type that activations take on their way into products.
    pub activation: DType,
    /// Bytes of an activation in products of integers.
    pub activation_bytes: u32,
    /// Gradients are those of so many times the loss, until they are handed out.
    pub scale: f32,
    /// They are handed out as those, too: whoever gets them undoes it.
    pub keeps_scale: bool,
    /// Whether gradients of what linear layers give are handed out ([`Parameter::Output`]).
    pub outputs: bool,
    /// Which inputs of adapters are left out; `None`: none.
    pub dropout_seed: Option<u64>,
    /// The parts in which they are.
    pub split: &'a TokenSplit,
    /// The load-balancing loss of experts, where there is one.
    pub balance: Option<Balance<'a>>,
}

/// The load-balancing loss of experts on a tape ([`kernels::experts::balance`](crate::kernels::experts::balance)). It is of all
/// layers' tokens together, so its gradient is known when all have gone forward.
#[derive(Clone, Copy, Debug)]
pub struct Balance<'a> {
    /// f32 (2, experts): tokens of each expert, and its probabilities.
    pub sums: &'a Tensor,
    /// The tokens that they are of, those of all layers together.
    pub tokens: usize,
    /// The factor of the loss.
    pub factor: f32,
    /// Whether this tape's tokens are added to the sums: those of a block that is recomputed are there.
    pub counts: bool,
}

/// A place on the tape whose gradient can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(usize);

/// A value on the tape.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its place.
    pub node: Node,
    /// Its elements.
    pub tensor: Tensor,
}

/// A value of a block: computed, or a product that waits for its use.
#[derive(Debug)]
pub enum Deferred<'a> {
    /// Computed.
    Known(Value),
    /// A product.
    Product(Product<'a>),
}

/// A product that waits for the first use of its result.
#[derive(Debug)]
pub struct Product<'a> {
    x: Value,
    weight: Weight<'a>,
    /// The residual stream that it is added to.
    stream: Option<Value>,
    result: OnceCell<Value>,
}

/// A linear layer as the tape takes it.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// The module's name in the checkpoint, without `.weight`.
    pub name: &'a str,
    /// (output features, input features)
    pub matrix: &'a Matrix,
    /// f32 (output features)
    pub bias: Option<&'a Tensor>,
}

impl<'a> Weight<'a> {
    /// A linear layer's.
    pub fn of(linear: &'a Linear) -> Self {
        Self { name: &linear.name, matrix: &linear.weight, bias: linear.bias.as_ref() }
    }

    /// One of an adapter's matrices.
    fn factor(factor: &'a Factor) -> Self {
        Self { name: &factor.name, matrix: &factor.matrix, bias: None }
    }
}

/// A rotary encoding of sequences that begin at position 0, and its inverse, which is its gradient.
#[derive(Debug)]
pub struct RopeTables {
    /// f32 (positions, head_dim / 2, 2): cosine and sine.
    pub forward: Tensor,
    /// The same with the sines negated.
    pub backward: Tensor,
    /// u32 (sequences): zeros.
    pub past: Tensor,
}

impl RopeTables {
    /// For `sequences` sequences of so many positions, from a table of f32 (positions, head_dim / 2, 2).
    pub fn upload(
        device: &Device,
        table: &[f32],
        positions: usize,
        sequences: usize,
    ) -> Result<Self> {
        let upload = |values: &[f32]| {
            let shape = [positions, values.len() / positions];
            device.upload(&HostTensor::from_f32(DType::F32, &shape, values), "rotations")
        };
        let back = |pair: &[f32]| [pair[0], -pair[1]];
        let negated: Vec<f32> = table.chunks_exact(2).flat_map(back).collect();
        Ok(Self {
            forward: upload(table)?,
            backward: upload(&negated)?,
            past: device.upload(&HostTensor::zeros(DType::U32, &[sequences]), "lengths")?,
        })
    }
}

/// Which experts the tokens go to, and the place of the shares' gradient.
#[derive(Debug)]
pub struct Routing {
    routed: Rc<Routed>,
    shares: Node,
}

type Rule<'a> = Box<dyn FnOnce(&mut Backward<'_, '_>, Tensor) -> Result<()> + 'a>;

/// Operations in the order in which they ran, each with its backward rule.
pub struct Tape<'a> {
    device: &'a Device,
    settings: Settings<'a>,
    block: Option<&'a BlockWeights>,
    ropes: &'a [RopeTables],
    paired: Option<&'a PairedRows>,
    /// Keys and values of the source.
    remembered: Option<(Value, Value)>,
    nodes: usize,
    rules: Vec<(Node, Rule<'a>)>,
}

impl std::fmt::Debug for Tape<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a tape of {} operations", self.rules.len())
    }
}

/// The state backward rules see: the gradients summed so far, and the receiver of those of weights.
struct Backward<'d, 's> {
    device: &'d Device,
    settings: Settings<'d>,
    sums: Vec<Option<Tensor>>,
    wants: &'s dyn Fn(&str) -> bool,
    sink: &'s mut Sink<'s>,
    /// The last product's input transposed, part by part: the next product often has the same.
    transposed: (Node, Vec<Option<Tensor>>),
}

impl Backward<'_, '_> {
    /// Adds to a node's gradient. The tensor is the node's own from here on: nobody else holds it.
    fn add(&mut self, node: Node, gradient: Tensor) -> Result<()> {
        match &self.sums[node.0] {
            Some(sum) => add(self.device, &gradient, sum),
            None => {
                self.sums[node.0] = Some(gradient);
                Ok(())
            }
        }
    }

    /// Hands out a tensor's gradient, if it is asked for: `make` gives that of some of the tokens.
    fn hand_out(
        &mut self,
        name: &str,
        weight: Parameter,
        mut make: impl FnMut(&TokenSplit, usize) -> Result<Tensor>,
    ) -> Result<()> {
        let Settings { split, scale, keeps_scale, .. } = self.settings;
        if !(self.wants)(name) {
            return Ok(());
        }
        for part in 0..split.count() {
            let values = make(split, part)?;
            let values = if scale == 1.0 || keeps_scale {
                values
            } else {
                scaled(self.device, &values, 1.0 / scale, DType::F32)?
            };
            (self.sink)(Gradient {
                name: name.to_string(),
                part: split.first() + part,
                values,
                weight: weight.clone(),
            })?;
        }
        Ok(())
    }
}

impl<'a> Tape<'a> {
    /// An empty tape.
    pub fn new(device: &'a Device, settings: Settings<'a>) -> Self {
        Self {
            device,
            settings,
            block: None,
            ropes: &[],
            paired: None,
            remembered: None,
            nodes: 0,
            rules: Vec::new(),
        }
    }

    /// An empty tape for a block, with the model's rotary encodings and, where its rows have two parts, those.
    pub fn for_block(
        device: &'a Device,
        settings: Settings<'a>,
        block: &'a BlockWeights,
        ropes: &'a [RopeTables],
        paired: Option<&'a PairedRows>,
    ) -> Self {
        Self { block: Some(block), ropes, paired, ..Self::new(device, settings) }
    }

    fn paired(&self) -> &'a PairedRows {
        self.paired.expect("the tape of a model whose rows have two parts knows them")
    }

    fn block(&self) -> &'a BlockWeights {
        self.block.expect("a block function has a block's tape")
    }

    fn node(&mut self) -> Node {
        self.nodes += 1;
        Node(self.nodes - 1)
    }

    fn record(
        &mut self,
        tensor: Tensor,
        rule: impl FnOnce(&mut Backward<'_, '_>, Tensor) -> Result<()> + 'a,
    ) -> Value {
        let node = self.node();
        self.rules.push((node, Box::new(rule)));
        Value { node, tensor }
    }

    /// A value that nothing on the tape computes: what it begins with, or a weight that is itself to be learned.
    pub fn input(&mut self, tensor: &Tensor) -> Value {
        let (node, tensor) = (self.node(), tensor.clone());
        Value { node, tensor }
    }

    /// `x`, f32 (tokens, columns), normalized over as many columns at a time as the norm has, in type `output`.
    pub fn rms(&mut self, x: &Value, norm: &'a RmsNormWeight, output: DType) -> Result<Value> {
        let (device, x) = (self.device, x.clone());
        let RmsNormWeight { gain, epsilon, .. } = norm;
        let result = rms(device, &x.tensor, gain, *epsilon, output)?;
        Ok(self.normed(result, &x, norm))
    }

    /// A result of [`rms`] of `x` with its rule.
    fn normed(&mut self, result: Tensor, x: &Value, norm: &'a RmsNormWeight) -> Value {
        let (device, x) = (self.device, x.clone());
        let RmsNormWeight { name, gain, epsilon, .. } = norm;
        self.record(result, move |back, grad| {
            let grad = cast(device, &grad, DType::F32)?;
            let onto = back.sums[x.node.0].take();
            let (sum, scales) = rms_grad(device, (&x.tensor, gain, *epsilon), &grad, onto)?;
            back.sums[x.node.0] = Some(sum);
            back.hand_out(name, Parameter::Vector(gain.clone()), |split, part| {
                let of = |all: &Tensor| split.part(device, all, part);
                let values = device.allocate(DType::F32, &[gain.len()], "gradient of a norm")?;
                let (x, scales) = (of(&x.tensor)?, of(&scales)?);
                gain_grad(device, (&x, &scales), &of(&grad)?, &values, false)?;
                Ok(values)
            })
        })
    }

    /// `x`, f32 (tokens, columns), with the mean of each row taken away, normalized and shifted, in f32.
    pub fn layer_norm(&mut self, x: &Value, norm: &'a RmsNormWeight) -> Result<Value> {
        let (device, node, columns) = (self.device, x.node, norm.gain.len());
        let bias = norm.bias.as_ref().expect("a layer norm has a bias");
        let centred = center(device, &x.tensor, columns)?;
        let normed = rms(device, &centred, &norm.gain, norm.epsilon, DType::F32)?;
        let result = device.allocate(DType::F32, x.tensor.shape(), "normalized rows")?;
        shift(device, &normed, bias, &result)?;
        let centred =
            self.record(centred, move |back, grad| back.add(node, center(device, &grad, columns)?));
        let normed = self.normed(normed, &centred, norm);
        let (node, name) = (normed.node, norm.bias_name());
        Ok(self.record(result, move |back, grad| {
            back.hand_out(&name, Parameter::Vector(bias.clone()), |split, part| {
                column_sums(device, &split.part(device, &grad, part)?, columns)
            })?;
            back.add(node, grad)
        }))
    }

    /// The residual stream with a row of a table for each token.
    fn looked_up(
        &mut self,
        stream: &Value,
        table: Weight<'a>,
        ids: std::borrow::Cow<'a, [u32]>,
    ) -> Result<Value> {
        let (device, node) = (self.device, stream.node);
        let on_device =
            device.upload(&HostTensor::from_u32(&[ids.len()], &ids), "rows of a table")?;
        let sum = scaled(device, &stream.tensor, 1.0, DType::F32)?;
        add(device, &gather(device, table.matrix, &on_device)?, &sum)?;
        Ok(self.record(sum, move |back, grad| {
            let Weight { name, matrix, .. } = table;
            let (rows, columns) = (matrix.rows(), matrix.columns());
            back.hand_out(
                &format!("{name}.weight"),
                Parameter::Matrix(matrix.clone()),
                |split, _| {
                    assert_eq!(split.count(), 1, "a table's gradient is that of all tokens");
                    let values = device.allocate(DType::F32, &[rows, columns], name)?;
                    scatter(device, &grad, &ids, &values, false)?;
                    Ok(values)
                },
            )?;
            back.add(node, grad)
        }))
    }

    /// activation(x) in the activations' type, as its gradient is: both go into products.
    fn activated(&mut self, x: &Value, activation: Activation) -> Result<Value> {
        let (device, x, output) = (self.device, x.clone(), self.settings.activation);
        let result = activate(device, &x.tensor, activation, output)?;
        Ok(self.record(result, move |back, grad| {
            let grad = cast(device, &grad, DType::F32)?;
            back.add(x.node, activate_grad(device, &x.tensor, &grad, activation, output)?)
        }))
    }

    /// tanh(x), f32, in the place of `x`, which nobody else has.
    pub fn tanh(&mut self, x: Value) -> Result<Value> {
        let (device, node) = (self.device, x.node);
        soft_cap(device, &x.tensor, 1.0)?;
        let result = x.tensor;
        Ok(self.record(result.clone(), move |back, grad| {
            let grad = cast(device, &grad, DType::F32)?;
            soft_cap_grad(device, &result, &grad, 1.0)?;
            back.add(node, grad)
        }))
    }

    /// The product of `x`, (tokens, input features), with a weight, in f32.
    pub fn linear(&mut self, x: &Value, weight: Weight<'a>) -> Result<Value> {
        self.linear_in(x, weight, DType::F32)
    }

    /// The same in type `output`.
    fn linear_in(&mut self, x: &Value, weight: Weight<'a>, output: DType) -> Result<Value> {
        let (x, input) = self.product_input(x, weight.matrix)?;
        let new = Destination::New(output);
        let result = kernel_linear(self.device, &input, weight.matrix, weight.bias, new)?;
        Ok(self.record(result, product_rule(self.device, &x, weight, None)))
    }

    /// The product of `x` with a weight that is a value of the tape, f32 (output features, input features): one that an
    /// adapter was added to, or that was quantized for training. Gradients go to both.
    pub fn linear_by_value(&mut self, x: &Value, weight: &Value) -> Result<Value> {
        let device = self.device;
        let shape = weight.tensor.shape();
        let (rows, columns) = (shape[0], shape[1]);
        let matrix = backward::dense_matrix(device, &weight.tensor)?;
        let (x, input) = self.product_input(x, &matrix)?;
        let result = kernel_linear(device, &input, &matrix, None, Destination::New(DType::F32))?;
        let node = weight.node;
        Ok(self.record(result, move |back, grad| {
            let grad = cast(device, &grad, x.tensor.dtype())?;
            let values = device.allocate(DType::F32, &[rows, columns], "gradient of a weight")?;
            backward::weight(device, &grad, &x.tensor, &mut None, &values, false)?;
            back.add(node, values)?;
            let sum = back.sums[x.node.0].take();
            back.sums[x.node.0] = Some(backward::input(device, &grad, &matrix, sum)?);
            Ok(())
        }))
    }

    /// `x` in the type that products take, also as their input.
    fn product_input(&self, x: &Value, matrix: &Matrix) -> Result<(Value, Input)> {
        let tensor = cast(self.device, &x.tensor, self.settings.activation)?;
        let bytes = self.settings.activation_bytes;
        let input = Input::new(tensor.clone(), matrix.columns(), bytes);
        let node = x.node;
        Ok((Value { node, tensor }, input))
    }

    /// The product of `x` with a weight, added to the residual stream `stream`, f32 (tokens, output features), in a new tensor.
    fn linear_onto(&mut self, x: &Value, weight: Weight<'a>, stream: &Value) -> Result<Value> {
        let (x, input) = self.product_input(x, weight.matrix)?;
        let sum = scaled(self.device, &stream.tensor, 1.0, DType::F32)?;
        let onto = Destination::Add(&sum);
        kernel_linear(self.device, &input, weight.matrix, weight.bias, onto)?;
        let rule = product_rule(self.device, &x, weight, Some(stream.node));
        Ok(self.record(sum, rule))
    }

    /// The product of `x` with a linear layer's weight, and what its adapter adds, in f32.
    fn adapted(&mut self, x: &Value, linear: &'a Linear, adapter: &'a Adapter) -> Result<Value> {
        let device = self.device;
        let rounded = self.rounded(x.clone(), linear)?;
        let own = self.linear(&rounded, Weight::of(linear))?;
        let left = match self.settings.dropout_seed {
            Some(seed) if adapter.dropout > 0.0 => {
                // A mask of its own for each layer and each microbatch.
                let first = self.settings.split.first() as u64;
                let seed = seed ^ hash(&adapter.down.name).wrapping_add(first << 32);
                self.leave_out(x, adapter.dropout, seed)?
            }
            _ => x.clone(),
        };
        let low = self.linear(&left, Weight::factor(&adapter.down))?;
        let low = self.times(&low, adapter.scale, self.settings.activation)?;
        let up = Weight::factor(&adapter.up);
        let (low, input) = self.product_input(&low, up.matrix)?;
        // Nothing reads the layer's own result apart from this sum.
        kernel_linear(device, &input, up.matrix, None, Destination::Add(&own.tensor))?;
        let rule = product_rule(device, &low, up, Some(own.node));
        Ok(self.record(own.tensor, rule))
    }

    /// A value of which a share is left out at random, and the rest made up for it.
    fn leave_out(&mut self, x: &Value, rate: f32, seed: u64) -> Result<Value> {
        let (device, node, dtype) = (self.device, x.node, x.tensor.dtype());
        let result = dropout(device, &x.tensor, rate, seed, 0, dtype)?;
        Ok(self.record(result, move |back, grad| {
            let grad = cast(device, &grad, DType::F32)?;
            back.add(node, dropout(device, &grad, rate, seed, 0, DType::F32)?)
        }))
    }

    /// Inputs of a linear layer as its product takes them. Gradients go through rounding as if it were not there (straight-through,
    /// Bengio et al. 2013, arXiv 1308.3432, section 4).
    fn rounded(&mut self, x: Value, linear: &Linear) -> Result<Value> {
        let Some(how) = linear.rounding else { return Ok(x) };
        let (device, node, columns) = (self.device, x.node, linear.weight.columns());
        let x = cast(device, &x.tensor, self.settings.activation)?;
        let result = inputs(device, &x, columns, how)?;
        Ok(self.record(result, move |back, grad| back.add(node, cast(device, &grad, DType::F32)?)))
    }

    /// A value times a number, in type `output`.
    fn times(&mut self, x: &Value, factor: f32, output: DType) -> Result<Value> {
        let (device, node) = (self.device, x.node);
        let result = scaled(device, &x.tensor, factor, output)?;
        Ok(self.record(result, move |back, grad| {
            back.add(node, scaled(device, &grad, factor, DType::F32)?)
        }))
    }

    /// The sum of two values of one shape, f32.
    pub fn sum(&mut self, a: &Value, b: &Value) -> Result<Value> {
        let device = self.device;
        let sum = scaled(device, &a.tensor, 1.0, DType::F32)?;
        add(device, &b.tensor, &sum)?;
        let (a, b) = (a.node, b.node);
        Ok(self.record(sum, move |back, grad| {
            back.add(a, scaled(device, &grad, 1.0, DType::F32)?)?;
            back.add(b, grad)
        }))
    }

    /// activation(gate) * up, all of one shape, in the activations' type, as its gradients at both are: they go into products.
    pub fn glu(&mut self, gate: &Value, up: &Value, activation: Activation) -> Result<Value> {
        let (device, gate, up) = (self.device, gate.clone(), up.clone());
        let output = self.settings.activation;
        let result = glu(device, &gate.tensor, &up.tensor, activation, output)?;
        Ok(self.record(result, move |back, grad| {
            let grad = cast(device, &grad, DType::F32)?;
            let (gate_values, up_values) = (&gate.tensor, &up.tensor);
            let (of_gate, of_up) =
                glu_grad(device, gate_values, up_values, &grad, activation, output)?;
            back.add(gate.node, of_gate)?;
            back.add(up.node, of_up)
        }))
    }

    /// The type that attention of such heads takes: f16 where matrix units multiply it, f32 elsewhere. Rounding there puts
    /// gradients off by 2.04e-3 instead of 1.5e-3, which f16 in register tiles is not worth.
    fn attention_type(&self, head_dim: usize) -> DType {
        match self.settings.activation {
            DType::F16 if coop::serves(self.device, head_dim) => DType::F16,
            _ => DType::F32,
        }
    }

    /// `x`, f32 (tokens, heads, head_dim), rotated by its positions, in the type that attention takes.
    pub fn rotate(&mut self, x: &Value, head_dim: usize, tables: &'a RopeTables) -> Result<Value> {
        let (device, node) = (self.device, x.node);
        let turn = move |x: &Tensor, table: &Tensor, output: DType| {
            rotate(device, x, head_dim, table, &tables.past, Target::New(output))
        };
        let result = turn(&x.tensor, &tables.forward, self.attention_type(head_dim))?;
        Ok(self.record(result, move |back, grad| {
            back.add(node, turn(&grad, &tables.backward, grad.dtype())?)
        }))
    }

    /// Causal attention within each of some sequences of one length: `query`, (tokens, heads, head_dim), over `key` and
    /// `value`, (tokens, kv_heads, head_dim). `past`: u32 (sequences), zeros. The result, from which gradients are computed too,
    /// and the three gradients are f32.
    pub fn attend(
        &mut self,
        query: &Value,
        both: (&Value, &Value),
        past: &'a Tensor,
        shape: &Attention,
    ) -> Result<Value> {
        self.attend_to(query, both, shape, Seen::causal(past), None)
    }

    /// Attention of `query`, (tokens, heads, head_dim), over `key` and `value`, (sequences, capacity, kv_heads, head_dim), of what is
    /// seen of them, with a bias by distance in a part. Results and gradients are f32.
    fn attend_to(
        &mut self,
        query: &Value,
        (key, value): (&Value, &Value),
        shape: &Attention,
        seen: Seen<'a>,
        bias: Option<(&'a PositionBias, Part)>,
    ) -> Result<Value> {
        let (device, shape) = (self.device, *shape);
        // Without a past, tokens in their order are a cache that is full.
        let dtype = self.attention_type(shape.dim);
        let taken = |of: &Value| -> Result<Value> {
            Ok(Value { node: of.node, tensor: cast(device, &of.tensor, dtype)? })
        };
        let (query, key, value) = (taken(query)?, taken(key)?, taken(value)?);
        let with = match bias {
            Some((bias, part)) => self.paired().bias(device, Some(bias), part)?,
            None => None,
        };
        let (cache, capacity) =
            ((&key.tensor, &value.tensor), key.tensor.shape()[0] / seen.ends.len());
        let looked = seen.with_bias(with.as_ref());
        let (result, known) =
            attention_forward(device, &query.tensor, cache, looked, shape, capacity)?;
        let mixed = result.clone();
        Ok(self.record(result, move |back, grad| {
            let grad = cast(device, &grad, query.tensor.dtype())?;
            // Nobody but a run that learns the table asks for its gradient.
            let wanted = bias.is_some_and(|(bias, _)| (back.wants)(&bias.name));
            let of = attention::backward(
                device,
                &query.tensor,
                (&key.tensor, &value.tensor),
                (&mixed, known.as_ref()),
                &grad,
                shape,
                (seen.with_bias(with.as_ref()), wanted),
            )?;
            back.add(query.node, of.query)?;
            back.add(key.node, of.key)?;
            back.add(value.node, of.value)?;
            if let (Some((bias, _)), Some(of_table)) = (bias, of.table) {
                let parameter = Parameter::Vector(bias.table.clone());
                back.hand_out(&bias.name, parameter, |split, _| {
                    assert_eq!(split.count(), 1, "a bias' gradient is that of all tokens");
                    Ok(of_table.clone())
                })?;
            }
            Ok(())
        }))
    }

    /// The experts of each token, by the router's result, f32 (tokens, experts). Every expert takes its own tokens, but where
    /// gradients are handed out in parts, which are of all tokens alike.
    fn routed(&mut self, logits: &Value, experts: Experts) -> Result<Routing> {
        let device = self.device;
        let routed = Rc::new(match self.settings.split.count() {
            1 => Routed::by_expert(device, &logits.tensor, experts, true)?,
            _ => Routed::everywhere(device, &logits.tensor, experts)?,
        });
        let balanced = self.settings.balance;
        if let Some(Balance { sums, counts: true, .. }) = balanced {
            balance(device, &logits.tensor, routed.shares(), sums)?;
        }
        let (of, logits) = (routed.clone(), logits.clone());
        let shares = self.record(routed.shares().clone(), move |back, grad| {
            let both = (&logits.tensor, of.shares());
            back.add(logits.node, route_grad(device, both, &grad, experts.normalized)?)?;
            let Some(Balance { sums, tokens, factor, .. }) = balanced else { return Ok(()) };
            let factor = factor * back.settings.scale;
            back.add(logits.node, balance_grad(device, &logits.tensor, sums, tokens, factor)?)
        });
        Ok(Routing { routed, shares: shares.node })
    }

    /// The tokens of `x` that an expert takes.
    fn taken(&mut self, x: &Value, routed: &Rc<Routed>, expert: usize) -> Result<Option<Value>> {
        if routed.is_everywhere() {
            return Ok(Some(x.clone()));
        }
        let device = self.device;
        let Some(own) = routed.gather(device, &x.tensor, expert)? else { return Ok(None) };
        let (routed, x) = (routed.clone(), x.clone());
        Ok(Some(self.record(own, move |back, grad| {
            let sum = match back.sums[x.node.0].take() {
                Some(sum) => sum,
                None => zeros_like(device, &x.tensor)?,
            };
            combine(device, &grad, None, routed.tokens(expert), &sum)?;
            back.sums[x.node.0] = Some(sum);
            Ok(())
        })))
    }

    /// The residual stream, f32 (tokens, columns), and what experts made of the tokens they took, f32 (rows, columns), each times
    /// its share.
    fn sum_of_experts(
        &mut self,
        stream: &Value,
        routing: Routing,
        results: Vec<(usize, Value)>,
    ) -> Result<Value> {
        let device = self.device;
        let sum = scaled(device, &stream.tensor, 1.0, DType::F32)?;
        for (expert, result) in &results {
            routing.routed.add(device, *expert, &result.tensor, &sum)?;
        }
        let node = stream.node;
        Ok(self.record(sum, move |back, grad| {
            let Routing { routed, shares } = routing;
            let of_shares = zeros_like(device, routed.shares())?;
            for (expert, result) in &results {
                let (share, tokens) = (routed.share(*expert), routed.tokens(*expert));
                let of_result =
                    combine_grad(device, &grad, &result.tensor, share, tokens, &of_shares)?;
                back.add(result.node, of_result)?;
            }
            back.add(shares, of_shares)?;
            back.add(node, grad)
        }))
    }

    /// A value, computed now if it was not.
    pub fn force(&mut self, value: &Deferred<'a>) -> Result<Value> {
        self.force_in(value, DType::F32)
    }

    /// The same, a product that is added to nothing in type `output`.
    fn force_in(&mut self, value: &Deferred<'a>, output: DType) -> Result<Value> {
        match value {
            Deferred::Known(value) => Ok(value.clone()),
            Deferred::Product(product) => {
                if let Some(result) = product.result.get() {
                    return Ok(result.clone());
                }
                let result = match &product.stream {
                    None => self.linear_in(&product.x, product.weight, output)?,
                    Some(stream) => self.linear_onto(&product.x, product.weight, stream)?,
                };
                Ok(product.result.get_or_init(|| result).clone())
            }
        }
    }

    /// The place of a value whose gradient is known and whose elements nobody asks for: a product that has not run does not run.
    pub fn place(&mut self, value: &Deferred<'a>) -> Result<Node> {
        let product = match value {
            Deferred::Known(value) => return Ok(value.node),
            Deferred::Product(product) => product,
        };
        if let Some(result) = product.result.get() {
            return Ok(result.node);
        }
        let (x, _) = self.product_input(&product.x, product.weight.matrix)?;
        let stream = product.stream.as_ref().map(|stream| stream.node);
        let rule = product_rule(self.device, &x, product.weight, stream);
        Ok(self.record(x.tensor.clone(), rule).node)
    }

    /// Runs the tape back from the gradients of some values, whose tensors are nobody else's. Returns the gradients of
    /// `inputs`, where the results depend on them. Gradients of the model's tensors go to `sink` if `wants` says so of their
    /// names; others are not computed.
    pub fn backward(
        self,
        results: Vec<(Node, Tensor)>,
        inputs: &[Node],
        wants: &dyn Fn(&str) -> bool,
        sink: &mut Sink<'_>,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut pass = |gradient| sink(gradient);
        let mut back = Backward {
            device: self.device,
            settings: self.settings,
            sums: vec![None; self.nodes],
            wants,
            sink: &mut pass,
            transposed: (Node(usize::MAX), Vec::new()),
        };
        for (node, gradient) in results {
            back.add(node, gradient)?;
        }
        for (node, rule) in self.rules.into_iter().rev() {
            // A value that no result depends on has no gradient.
            if let Some(gradient) = back.sums[node.0].take() {
                rule(&mut back, gradient)?;
            }
        }
        Ok(inputs.iter().map(|node| back.sums[node.0].take()).collect())
    }
}

impl<'a> Graph for Tape<'a> {
    type Value = Deferred<'a>;
    type Routing = Routing;

    fn norm(&mut self, x: &Deferred<'a>, slot: Slot) -> Result<Deferred<'a>> {
        let output = match slot.feeds_products() {
            true => self.settings.activation,
            false => DType::F32,
        };
        let (x, norm) = (self.force(x)?, self.block().norm(slot));
        self.rms(&x, norm, output).map(Deferred::Known)
    }

    fn layer_norm(&mut self, stream: Deferred<'a>, slot: Slot) -> Result<Deferred<'a>> {
        let (stream, norm) = (self.force(&stream)?, self.block().norm(slot));
        Tape::layer_norm(self, &stream, norm).map(Deferred::Known)
    }

    fn look_up(&mut self, stream: Deferred<'a>, slot: Slot) -> Result<Deferred<'a>> {
        let (stream, table) = (self.force(&stream)?, Weight::of(self.block().linear(slot)));
        let ids = self.paired().table_rows(slot);
        self.looked_up(&stream, table, ids).map(Deferred::Known)
    }

    fn activate(&mut self, x: Deferred<'a>, activation: Activation) -> Result<Deferred<'a>> {
        let x = self.force(&x)?;
        self.activated(&x, activation).map(Deferred::Known)
    }

    fn linear(&mut self, x: &Deferred<'a>, slot: Slot) -> Result<Deferred<'a>> {
        let linear = self.block().linear(slot);
        let x = self.force(x)?;
        if let Some(adapter) = &linear.adapter {
            return self.adapted(&x, linear, adapter).map(Deferred::Known);
        }
        let x = self.rounded(x, linear)?;
        Ok(Deferred::Product(Product {
            weight: Weight::of(linear),
            x,
            stream: None,
            result: OnceCell::new(),
        }))
    }

    fn rotary(&mut self, x: Deferred<'a>, rope: usize) -> Result<Deferred<'a>> {
        let (x, tables) = (self.force(&x)?, &self.ropes[rope]);
        let head_dim = tables.forward.shape()[1];
        self.rotate(&x, head_dim, tables).map(Deferred::Known)
    }

    fn attention(
        &mut self,
        query: Deferred<'a>,
        key: Deferred<'a>,
        value: Deferred<'a>,
        shape: &Attention,
    ) -> Result<Deferred<'a>> {
        let (query, key) = (self.force(&query)?, self.force(&key)?);
        // It goes into attention's products only.
        let value = self.force_in(&value, self.attention_type(shape.dim))?;
        let past = &self.ropes[0].past;
        self.attend(&query, (&key, &value), past, shape).map(Deferred::Known)
    }

    fn take(&mut self, stream: &Deferred<'a>, part: Part) -> Result<Option<Deferred<'a>>> {
        let (device, paired, stream) = (self.device, self.paired(), self.force(stream)?);
        let Some(own) = paired.take(device, &stream.tensor, part)? else { return Ok(None) };
        let own = self.record(own, move |back, grad| {
            let whole = zeros_like(device, &stream.tensor)?;
            paired.put(device, &grad, &whole, part)?;
            back.add(stream.node, whole)
        });
        Ok(Some(Deferred::Known(own)))
    }

    fn put(&mut self, stream: Deferred<'a>, part: Part, own: Deferred<'a>) -> Result<Deferred<'a>> {
        let (device, paired) = (self.device, self.paired());
        let (stream, own) = (self.force(&stream)?, self.force(&own)?);
        let whole = scaled(device, &stream.tensor, 1.0, DType::F32)?;
        paired.put(device, &own.tensor, &whole, part)?;
        Ok(Deferred::Known(self.record(whole, move |back, grad| {
            let of_own = paired.take(device, &grad, part)?.expect("what was put has rows");
            paired.put(device, &zeros_like(device, &of_own)?, &grad, part)?;
            back.add(own.node, of_own)?;
            back.add(stream.node, grad)
        })))
    }

    fn attention_within(
        &mut self,
        query: Deferred<'a>,
        key: Deferred<'a>,
        value: Deferred<'a>,
        shape: &Attention,
        part: Part,
    ) -> Result<Deferred<'a>> {
        let query = self.force_in(&query, self.attention_type(shape.dim))?;
        let key = self.force_in(&key, self.attention_type(shape.dim))?;
        let value = self.force_in(&value, self.attention_type(shape.dim))?;
        let bias = self.block().position().map(|bias| (bias, part));
        let seen = self.paired().alone(part);
        self.attend_to(&query, (&key, &value), shape, seen, bias).map(Deferred::Known)
    }

    fn remember(&mut self, key: Deferred<'a>, value: Deferred<'a>) -> Result<()> {
        self.remembered = Some((self.force(&key)?, self.force(&value)?));
        Ok(())
    }

    fn recall(&mut self, query: Deferred<'a>, shape: &Attention) -> Result<Deferred<'a>> {
        let query = self.force(&query)?;
        let (key, value) = self.remembered.take().expect("a block remembers before it recalls");
        let seen = self.paired().sources();
        self.attend_to(&query, (&key, &value), shape, seen, None).map(Deferred::Known)
    }

    fn gate(
        &mut self,
        gate: Deferred<'a>,
        up: Deferred<'a>,
        activation: Activation,
    ) -> Result<Deferred<'a>> {
        let (gate, up) = (self.force(&gate)?, self.force(&up)?);
        self.glu(&gate, &up, activation).map(Deferred::Known)
    }

    fn shortcut(&mut self, stream: Deferred<'a>, slot: Slot) -> Result<Deferred<'a>> {
        let Some(own) = self.block().find(slot) else { return Ok(stream) };
        let (device, x, weight) = (self.device, self.force(&stream)?, Weight::of(own));
        let input = Input::new(x.tensor.clone(), weight.matrix.columns(), 3);
        let result = kernel_linear(
            device,
            &input,
            weight.matrix,
            weight.bias,
            Destination::New(DType::F32),
        )?;
        let rule = product_rule(device, &x, weight, None);
        Ok(Deferred::Known(self.record(result, rule)))
    }

    fn add(&mut self, stream: Deferred<'a>, x: Deferred<'a>) -> Result<Deferred<'a>> {
        let stream = self.force(&stream)?;
        match x {
            Deferred::Product(product)
                if product.stream.is_none() && product.result.get().is_none() =>
            {
                let stream = Some(stream);
                Ok(Deferred::Product(Product { stream, ..product }))
            }
            x => {
                let x = self.force(&x)?;
                self.sum(&stream, &x).map(Deferred::Known)
            }
        }
    }

    fn route(&mut self, logits: Deferred<'a>, experts: Experts) -> Result<Routing> {
        let logits = self.force(&logits)?;
        self.routed(&logits, experts)
    }

    fn to_expert(
        &mut self,
        x: &Deferred<'a>,
        routing: &Routing,
        expert: usize,
    ) -> Result<Option<Deferred<'a>>> {
        let x = self.force(x)?;
        Ok(self.taken(&x, &routing.routed, expert)?.map(Deferred::Known))
    }

    fn add_experts(
        &mut self,
        stream: Deferred<'a>,
        routing: Routing,
        results: Vec<(usize, Deferred<'a>)>,
    ) -> Result<Deferred<'a>> {
        let stream = self.force(&stream)?;
        let force = |(expert, result): &(usize, Deferred<'a>)| Ok((*expert, self.force(result)?));
        let results = results.iter().map(force).collect::<Result<_>>()?;
        self.sum_of_experts(&stream, routing, results).map(Deferred::Known)
    }
}

/// The sum of each column of `grad`, f32 (tokens, columns): a bias is a weight whose input is 1.
fn column_sums(device: &Device, grad: &Tensor, columns: usize) -> Result<Tensor> {
    let tokens = grad.len() / columns;
    let ones = HostTensor::from_f32(DType::F32, &[tokens, 1], &vec![1.0; tokens]);
    let values = device.allocate(DType::F32, &[columns, 1], "gradient of a bias")?;
    backward::weight(device, grad, &device.upload(&ones, "ones")?, &mut None, &values, false)?;
    Ok(values)
}

/// Zeros in f32, of a tensor's shape.
fn zeros_like(device: &Device, x: &Tensor) -> Result<Tensor> {
    scaled(device, x, 0.0, DType::F32)
}

/// A number that follows from a name (FNV-1a, Fowler, Noll and Vo 1991).
fn hash(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The rule of a product: gradients of the weight and the bias, then of the input, then of the stream it was added to.
fn product_rule<'a>(
    device: &'a Device,
    x: &Value,
    weight: Weight<'a>,
    stream: Option<Node>,
) -> impl FnOnce(&mut Backward<'_, '_>, Tensor) -> Result<()> + use<'a> {
    let x = x.clone();
    move |back, whole| {
        let Weight { name, matrix, bias } = weight;
        let (rows, columns) = (matrix.rows(), matrix.columns());
        if back.settings.outputs {
            // Once here and once as it is handed out: squares have the scale twice.
            let factor = if back.settings.keeps_scale { 1.0 } else { 1.0 / back.settings.scale };
            back.hand_out(&output_name(name), Parameter::Output, |split, part| {
                let grad = split.part(device, &cast(device, &whole, DType::F32)?, part)?;
                let tokens = grad.len() / rows;
                let values = device.allocate(DType::F32, &[tokens], "squared gradients")?;
                let grad = grad.reshaped(&[tokens, rows]);
                squared_rows(device, Form::L2, &grad, None, None, &values, false)?;
                scaled(device, &values, factor, DType::F32)
            })?;
        }
        let grad = cast(device, &whole, x.tensor.dtype())?;
        // Rows that are cut out are whole words.
        let halves = rows.is_multiple_of(2) && columns.is_multiple_of(2);
        let words = halves || back.settings.split.count() == 1;
        let dtype = if words { grad.dtype() } else { DType::F32 };
        let of = |all: &Tensor, split: &TokenSplit, part: usize| {
            split.part(device, &cast(device, all, dtype)?, part)
        };
        let whole_matrix = Parameter::Matrix(matrix.clone());
        let (node, mut transposed) = std::mem::replace(&mut back.transposed, (x.node, Vec::new()));
        if node != x.node {
            transposed.clear();
        }
        transposed.resize(back.settings.split.count(), None);
        back.hand_out(&format!("{name}.weight"), whole_matrix, |split, part| {
            let (grad, input) = (of(&grad, split, part)?, of(&x.tensor, split, part)?);
            let values = device.allocate(DType::F32, &[rows, columns], name)?;
            backward::weight(device, &grad, &input, &mut transposed[part], &values, false)?;
            Ok(values)
        })?;
        back.transposed.1 = transposed;
        if let Some(bias) = bias {
            // A bias is a weight whose input is 1.
            let vector = Parameter::Vector(bias.clone());
            back.hand_out(&format!("{name}.bias"), vector, |split, part| {
                let grad = of(&grad, split, part)?;
                let tokens = grad.len() / rows;
                let ones = HostTensor::from_f32(grad.dtype(), &[tokens, 1], &vec![1.0; tokens]);
                let values = device.allocate(DType::F32, &[rows, 1], name)?;
                let ones = device.upload(&ones, "ones")?;
                backward::weight(device, &grad, &ones, &mut None, &values, false)?;
                Ok(values)
            })?;
        }
        let sum = back.sums[x.node.0].take();
        back.sums[x.node.0] = Some(backward::input(device, &grad, matrix, sum)?);
        match stream {
            Some(stream) => back.add(stream, whole),
            None => Ok(()),
        }
    }
}
