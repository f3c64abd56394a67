//! Weights of a block on a device, and what a pass over them computes in.

use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::kernels::activation::Activation;
use crate::kernels::attention::cached::Mixed;
use crate::kernels::copy::cast::scaled;
use crate::kernels::kv::CacheType;
use crate::kernels::matmul::{Destination, Input, Norm, linear_beside, linear_rows};
use crate::kernels::matrix::Matrix;
use crate::kernels::quantize::inputs::InputRounding;
use crate::tensor::DType;

/// A linear layer on a device.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The module's name in the checkpoint, without `.weight`.
    pub name: String,
    /// (output features, input features)
    pub weight: Matrix,
    /// (output features) f32
    pub bias: Option<Tensor>,
    /// What is added to its result beside.
    pub adapter: Option<Adapter>,
    /// How its inputs are rounded before the product; an adapter takes them as they are.
    pub rounding: Option<InputRounding>,
}

/// A low-rank addition to a linear layer: scale * up (down x) (LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1).
#[derive(Clone, Debug)]
pub struct Adapter {
    /// `lora_A`: (rank, input features).
    pub down: Factor,
    /// `lora_B`: (output features, rank).
    pub up: Factor,
    /// alpha / rank.
    pub scale: f32,
    /// The share of inputs that training leaves out, 0 to less than 1.
    pub dropout: f32,
}

/// One of an adapter's two matrices.
#[derive(Clone, Debug)]
pub struct Factor {
    /// The tensor's name, without `.weight`.
    pub name: String,
    /// Its values.
    pub matrix: Matrix,
}

impl Adapter {
    /// The names of its tensors.
    pub fn names(&self) -> [String; 2] {
        [&self.down, &self.up].map(|factor| format!("{}.weight", factor.name))
    }

    /// Adds its share of a layer's result to `result`, f32 (tokens, output features); nothing is left out.
    pub fn apply(&self, pass: &Pass<'_>, x: &Input, result: &Tensor) -> Result<()> {
        let device = pass.device;
        let new = Destination::New(DType::F32);
        let low = linear_rows(device, x, 0..x.tokens(), &self.down.matrix, None, new)?;
        let low = scaled(device, &low, self.scale, pass.compute.activation)?;
        let low = pass.input(low, self.up.matrix.columns());
        let onto = Destination::Add(result);
        linear_rows(device, &low, 0..low.tokens(), &self.up.matrix, None, onto)?;
        Ok(())
    }
}

/// The weight of a norm on a device: of a root-mean-square norm, or with a bias of a layer norm.
#[derive(Clone, Debug)]
pub struct RmsNormWeight {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// The gain of each normalized column, f32 (columns).
    pub gain: Tensor,
    /// Added to the mean of the squares.
    pub epsilon: f32,
    /// What is added to each column in the end, f32 (columns).
    pub bias: Option<Tensor>,
}

impl RmsNormWeight {
    /// The name of its bias.
    pub fn bias_name(&self) -> String {
        format!("{}.bias", self.name.trim_end_matches(".weight"))
    }
}

/// A bias of attention's scores by the distance from a token to a key, on a device.
#[derive(Clone, Debug)]
pub struct PositionBias {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// f32 (buckets, heads)
    pub table: Tensor,
}

/// The device and settings of a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Where it runs.
    pub device: &'a Device,
    /// The types it computes in.
    pub compute: Compute,
}

/// The types of a forward pass. The residual stream is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// The type of activations between kernels.
    pub activation: DType,
    /// Bytes of an activation in products of integers: 3 beside f32; 2, which lose less than f16 does; or 1.
    pub activation_bytes: u32,
    /// The type of the key-value cache; `None`: that of activations.
    pub cache: Option<&'static CacheType>,
}

impl Compute {
    /// Activations in f32.
    pub const F32: Compute = Compute { activation: DType::F32, activation_bytes: 3, cache: None };
    /// Activations in f16.
    pub const F16: Compute = Compute { activation: DType::F16, activation_bytes: 2, cache: None };

    /// With activations of this type.
    pub fn with(activation: DType) -> Self {
        match activation {
            DType::F16 => Self::F16,
            _ => Self { activation, ..Self::F32 },
        }
    }

    /// The same with a key-value cache of that type.
    pub fn with_cache(self, cache: Option<&'static CacheType>) -> Self {
        Self { cache, ..self }
    }

    /// The type of the key-value cache.
    pub fn cache_type(self) -> &'static CacheType {
        self.cache.unwrap_or_else(|| CacheType::plain(self.activation))
    }

    /// Its name in flags and reports.
    pub fn name(self) -> &'static str {
        if self.activation_bytes == 1 { "i8" } else { self.activation.name() }
    }
}

impl Pass<'_> {
    /// Activations of so many columns, for products.
    pub fn input(&self, x: Tensor, columns: usize) -> Input {
        Input::new(x, columns, self.compute.activation_bytes)
    }

    /// The residual stream, normalized on its way into products.
    pub fn normed(&self, x: &Tensor, norm: &RmsNormWeight) -> Input {
        let Compute { activation, activation_bytes, .. } = self.compute;
        let (gain, epsilon) = (norm.gain.clone(), norm.epsilon);
        Input::normed(x.clone(), Norm { gain, epsilon }, activation, activation_bytes)
    }

    /// activation(gate) * up, f32 both, on its way into products.
    pub fn gated(&self, gate: Tensor, up: Tensor, activation: Activation) -> Input {
        let Compute { activation: dtype, activation_bytes, .. } = self.compute;
        Input::gated((gate, up), activation, dtype, activation_bytes)
    }

    /// Attention of so many columns on its way into products.
    pub fn mixed(&self, mixed: Mixed, columns: usize) -> Input {
        let Compute { activation, activation_bytes, .. } = self.compute;
        Input::mixed(mixed, columns, activation, activation_bytes)
    }
}

impl Linear {
    /// x (tokens, input features) to (tokens, output features) in its destination.
    pub fn apply(
        &self,
        pass: &Pass<'_>,
        x: &Input,
        destination: Destination<'_>,
    ) -> Result<Tensor> {
        self.apply_rows(pass, x, 0..x.tokens(), destination)
    }

    /// The products with the weights of several layers by one call, each (tokens, output features) of that type. `None`
    /// where they have to be computed one by one ([`linear_beside`]).
    pub fn apply_beside(
        linears: &[&Linear],
        pass: &Pass<'_>,
        x: &Input,
        output: DType,
    ) -> Result<Option<Vec<Tensor>>> {
        let layers: Vec<_> =
            linears.iter().map(|linear| (&linear.weight, linear.bias.as_ref())).collect();
        linear_beside(pass.device, x, &layers, output)
    }

    /// The product of some of the tokens only.
    pub fn apply_rows(
        &self,
        pass: &Pass<'_>,
        x: &Input,
        tokens: std::ops::Range<usize>,
        destination: Destination<'_>,
    ) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        linear_rows(pass.device, x, tokens, &self.weight, bias, destination)
    }
}
