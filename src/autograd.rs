//! Reverse mode: a tape of kernel calls, run backwards. What a rule computes stands in the kernels, beside their forward
//! ones (`matmul::backward`, `norm/rms_grad`, ...), which know no tape; here they are strung.
//!
//! A tape is short: a model records one block, runs it back, and lets go of it. A weight's gradient is handed out as soon as
//! it is known, so that never more than one is held. Activations and their gradients are f32, and take the type that products
//! take (f16, where that is asked for) on their way into one: rounded anywhere else too, gradients were off by 2.3e-3 for
//! 1.5e-3. In f16 small gradients would be lost, so the caller scales the loss, and they are scaled back when handed out.

mod split;

pub use split::Split;

use crate::device::{Device, HostTensor, Tensor};
use crate::error::Result;
use crate::kernels::activation::Activation;
use crate::kernels::attention::Attention;
use crate::kernels::attention::backward as attention;
use crate::kernels::attention::causal::causal;
use crate::kernels::copy::cast::{cast, scaled};
use crate::kernels::gate::glu::glu;
use crate::kernels::gate::glu_grad::glu_grad;
use crate::kernels::matmul::{Destination, Input, backward, linear};
use crate::kernels::matrix::Matrix;
use crate::kernels::norm::gain_grad::gain_grad;
use crate::kernels::norm::rms::rms;
use crate::kernels::norm::rms_grad::rms_grad;
use crate::kernels::residual::add::add;
use crate::kernels::rope::rotate::{Target, rotate};
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

/// A tensor of the model, on its device.
#[derive(Clone, Debug)]
pub enum Parameter {
    /// A matrix as it is stored.
    Matrix(Matrix),
    /// A gain or a bias, f32.
    Vector(Tensor),
}

/// Who gets the gradients, each part once, in the order in which they are known.
pub type Sink<'s> = dyn FnMut(Gradient) -> Result<()> + 's;

/// What a tape computes in, and hands out.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// The type that activations take on their way into products.
    pub activation: DType,
    /// Bytes of an activation in products of integers.
    pub integer_bytes: u32,
    /// Gradients are those of so many times the loss, until they are handed out.
    pub scale: f32,
    /// The parts in which they are.
    pub split: &'a Split,
}

/// A place on the tape whose gradient can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(usize);

/// What stands at a place of the tape.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its place.
    pub node: Node,
    /// Its contents.
    pub tensor: Tensor,
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

/// A normalization as the tape takes it.
#[derive(Clone, Debug)]
pub struct Gain<'a> {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// f32 (columns)
    pub gain: &'a Tensor,
    /// What is added to the mean of the squares.
    pub epsilon: f32,
}

/// Rotary position embedding of sequences that begin at position 0, and its inverse, which is its gradient.
#[derive(Debug)]
pub struct Rotations {
    /// f32 (positions, head_dim / 2, 2): cosine and sine.
    pub forward: Tensor,
    /// The same with the sines negated.
    pub backward: Tensor,
    /// u32 (sequences): zeros.
    pub past: Tensor,
}

impl Rotations {
    /// Of `sequences` sequences of so many positions, from a table of f32 (positions, head_dim / 2, 2).
    pub fn upload(
        device: &Device,
        table: &[f32],
        positions: usize,
        sequences: usize,
    ) -> Result<Self> {
        let upload = |values: &[f32]| {
            let shape = [positions, values.len() / positions];
            device.upload(
                &HostTensor::from_f32(DType::F32, &shape, values),
                "rotations",
            )
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

type Rule<'a> = Box<dyn FnOnce(&mut Backward<'_, '_>, Tensor) -> Result<()> + 'a>;

/// Operations in the order in which they ran, each with its backward rule.
pub struct Tape<'a> {
    device: &'a Device,
    settings: Settings<'a>,
    nodes: usize,
    rules: Vec<(Node, Rule<'a>)>,
}

impl std::fmt::Debug for Tape<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a tape of {} operations", self.rules.len())
    }
}

/// What rules see: the sums of gradients so far, and who gets those of weights.
struct Backward<'d, 's> {
    device: &'d Device,
    settings: Settings<'d>,
    sums: Vec<Option<Tensor>>,
    wants: &'s dyn Fn(&str) -> bool,
    sink: &'s mut Sink<'s>,
    /// The last product's input transposed, part by part: the next product often has the same.
    turned: (Node, Vec<Option<Tensor>>),
}

impl Backward<'_, '_> {
    /// The gradient is the node's own from here on: nobody else holds the tensor.
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
        mut make: impl FnMut(&Split, usize) -> Result<Tensor>,
    ) -> Result<()> {
        let Settings { split, scale, .. } = self.settings;
        if !(self.wants)(name) {
            return Ok(());
        }
        for part in 0..split.count() {
            let values = make(split, part)?;
            let values = if scale == 1.0 {
                values
            } else {
                scaled(self.device, &values, 1.0 / scale, DType::F32)?
            };
            let (name, part) = (name.to_string(), split.first + part);
            let weight = weight.clone();
            (self.sink)(Gradient {
                name,
                part,
                values,
                weight,
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
            nodes: 0,
            rules: Vec::new(),
        }
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

    /// What the tape begins with.
    pub fn input(&mut self, tensor: &Tensor) -> Value {
        let (node, tensor) = (self.node(), tensor.clone());
        Value { node, tensor }
    }

    /// The residual stream `x`, f32 (tokens, columns), normalized, in the activations' type.
    pub fn rms(&mut self, x: &Value, gain: Gain<'a>) -> Result<Value> {
        let (device, x) = (self.device, x.clone());
        let Gain {
            name,
            gain,
            epsilon,
        } = gain;
        let result = rms(device, &x.tensor, gain, epsilon, self.settings.activation)?;
        Ok(self.record(result, move |back, grad| {
            let grad = cast(device, &grad, DType::F32)?;
            let onto = back.sums[x.node.0].take();
            let (sum, scales) = rms_grad(device, (&x.tensor, gain, epsilon), &grad, onto)?;
            back.sums[x.node.0] = Some(sum);
            back.hand_out(&name, Parameter::Vector(gain.clone()), |split, part| {
                let of = |all: &Tensor| split.part(device, all, part);
                let values = device.allocate(DType::F32, &[gain.len()], "gradient of a gain")?;
                let (x, scales) = (of(&x.tensor)?, of(&scales)?);
                gain_grad(device, (&x, &scales), &of(&grad)?, &values, false)?;
                Ok(values)
            })
        }))
    }

    /// The product of `x`, (tokens, input features), with a weight, in f32.
    pub fn linear(&mut self, x: &Value, weight: Weight<'a>) -> Result<Value> {
        let (x, input) = self.product_input(x, weight)?;
        let new = Destination::New(DType::F32);
        let result = linear(self.device, &input, weight.matrix, weight.bias, new)?;
        Ok(self.record(result, product_rule(self.device, &x, weight, None)))
    }

    /// `x` in the type that products take, also as their input.
    fn product_input(&self, x: &Value, weight: Weight<'_>) -> Result<(Value, Input)> {
        let tensor = cast(self.device, &x.tensor, self.settings.activation)?;
        let columns = weight.matrix.columns();
        let input = Input::new(tensor.clone(), columns, self.settings.integer_bytes);
        let node = x.node;
        Ok((Value { node, tensor }, input))
    }

    /// The same, added to the residual stream `stream`, f32 (tokens, output features), in a new tensor.
    pub fn linear_onto(&mut self, x: &Value, weight: Weight<'a>, stream: &Value) -> Result<Value> {
        let (x, input) = self.product_input(x, weight)?;
        let sum = scaled(self.device, &stream.tensor, 1.0, DType::F32)?;
        let onto = Destination::Add(&sum);
        linear(self.device, &input, weight.matrix, weight.bias, onto)?;
        Ok(self.record(
            sum,
            product_rule(self.device, &x, weight, Some(stream.node)),
        ))
    }

    /// The place of [`Tape::linear_onto`]'s result at the end of a recomputed block: its gradient is known, and nobody asks
    /// for itself, so nothing is computed.
    pub fn ends_onto(&mut self, x: &Value, weight: Weight<'a>, stream: &Value) -> Result<Node> {
        let tensor = cast(self.device, &x.tensor, self.settings.activation)?;
        let (node, result) = (x.node, tensor.clone());
        let rule = product_rule(
            self.device,
            &Value { node, tensor },
            weight,
            Some(stream.node),
        );
        Ok(self.record(result, rule).node)
    }

    /// silu(gate) * up, all of one shape, in the activations' type, as its gradients at both are: they go into products.
    pub fn silu(&mut self, gate: &Value, up: &Value) -> Result<Value> {
        let (device, gate, up) = (self.device, gate.clone(), up.clone());
        let output = self.settings.activation;
        let activation = Activation::Silu;
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

    /// `x`, (tokens, heads, head_dim), rotated by its positions.
    pub fn rotate(
        &mut self,
        x: &Value,
        head_dim: usize,
        rotations: &'a Rotations,
    ) -> Result<Value> {
        let (device, node) = (self.device, x.node);
        let turn = move |x: &Tensor, table: &Tensor| {
            rotate(device, x, head_dim, table, &rotations.past, Target::New)
        };
        let result = turn(&x.tensor, &rotations.forward)?;
        let dtype = result.dtype();
        Ok(self.record(result, move |back, grad| {
            let grad = cast(device, &grad, dtype)?;
            back.add(node, turn(&grad, &rotations.backward)?)
        }))
    }

    /// Causal attention within each of some sequences of one length: `query`, (tokens, heads, head_dim), over `key` and
    /// `value`, (tokens, kv_heads, head_dim). `past`: u32 (sequences), zeros.
    pub fn attention(
        &mut self,
        query: &Value,
        (key, value): (&Value, &Value),
        past: &Tensor,
        heads: Attention,
    ) -> Result<Value> {
        let (device, sequences) = (self.device, past.len());
        let length = query.tensor.shape()[0] / sequences;
        // Without a past, tokens in their order are a cache that is full.
        let (query, key, value) = (query.clone(), key.clone(), value.clone());
        let cache = (&key.tensor, &value.tensor);
        let result = causal(device, &query.tensor, cache, past, heads, length)?;
        let mixed = result.clone();
        Ok(self.record(result, move |back, grad| {
            let grad = cast(device, &grad, mixed.dtype())?;
            let (of_query, of_key, of_value) = attention::backward(
                device,
                &query.tensor,
                (&key.tensor, &value.tensor),
                (&mixed, &grad),
                heads,
                sequences,
                length,
            )?;
            back.add(query.node, of_query)?;
            back.add(key.node, of_key)?;
            back.add(value.node, of_value)
        }))
    }

    /// Runs the tape back from the gradient of `last`, whose tensor is nobody else's. Returns the gradient of `first`.
    /// Gradients of tensors go to `sink` if `wants` says so of their names; others are not computed.
    pub fn run_back(
        self,
        last: Node,
        gradient: Tensor,
        first: Node,
        wants: &dyn Fn(&str) -> bool,
        sink: &mut Sink<'_>,
    ) -> Result<Tensor> {
        let mut sums = vec![None; self.nodes];
        sums[last.0] = Some(gradient);
        let mut pass = |gradient| sink(gradient);
        let mut back = Backward {
            device: self.device,
            settings: self.settings,
            sums,
            wants,
            sink: &mut pass,
            turned: (last, Vec::new()),
        };
        for (node, rule) in self.rules.into_iter().rev() {
            // What nothing was made of has no gradient.
            if let Some(gradient) = back.sums[node.0].take() {
                rule(&mut back, gradient)?;
            }
        }
        let found = back.sums[first.0].take();
        Ok(found.expect("what is run back to was part of the result"))
    }
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
        let grad = cast(device, &whole, x.tensor.dtype())?;
        // Rows that are cut out are whole words.
        let halves = rows.is_multiple_of(2) && columns.is_multiple_of(2);
        let words = halves || back.settings.split.count() == 1;
        let dtype = if words { grad.dtype() } else { DType::F32 };
        let of = |all: &Tensor, split: &Split, part: usize| {
            split.part(device, &cast(device, all, dtype)?, part)
        };
        let whole_matrix = Parameter::Matrix(matrix.clone());
        let (node, mut turned) = std::mem::replace(&mut back.turned, (x.node, Vec::new()));
        if node != x.node {
            turned.clear();
        }
        turned.resize(back.settings.split.count(), None);
        back.hand_out(&format!("{name}.weight"), whole_matrix, |split, part| {
            let (grad, input) = (of(&grad, split, part)?, of(&x.tensor, split, part)?);
            let values = device.allocate(DType::F32, &[rows, columns], name)?;
            backward::weight(device, &grad, &input, &mut turned[part], &values, false)?;
            Ok(values)
        })?;
        back.turned.1 = turned;
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
