//! Weights of a checkpoint on a device, by slot.

use super::checkpoint::Weights;
use super::resident::Head;
use crate::device::{Device, HostTensor, Tensor};
use crate::error::Result;
use crate::families::{Role, TensorSpec, head_name, shared_slots};
use crate::graph::{BlockWeights, Linear, PositionBias, RmsNormWeight, Slot};
use crate::kernels::matrix::Matrix;
use crate::tensor::{DType, Packed};

/// The spec of a tensor that every model of the family has.
pub(super) fn spec(weights: &dyn Weights, layer: Option<usize>, slot: Slot) -> &TensorSpec {
    let is =
        |spec: &&TensorSpec| (spec.layer, spec.slot) == (layer, slot) && spec.role != Role::Bias;
    let found = weights.specs().iter().find(is);
    found.expect("opening a checkpoint checks that it has every tensor")
}

/// A matrix as it is stored, packed on the device.
pub(super) fn matrix(device: &Device, packed: &Packed, name: &str) -> Result<Matrix> {
    Matrix::upload(device, packed, name)
}

/// A vector in f32.
fn vector(device: &Device, weights: &dyn Weights, spec: &TensorSpec) -> Result<Tensor> {
    let values = weights.load(spec)?.to_f32();
    let values = HostTensor::from_f32(DType::F32, &spec.shape(), &values);
    device.upload(&values, &spec.name)
}

/// A linear layer whose weight is given, with the bias that the checkpoint has for it.
pub(super) fn linear_with(
    device: &Device,
    weights: &dyn Weights,
    spec: &TensorSpec,
    weight: Matrix,
) -> Result<Linear> {
    let is_bias = |other: &&TensorSpec| {
        (other.layer, other.slot, other.role) == (spec.layer, spec.slot, Role::Bias)
    };
    let bias = weights.specs().iter().find(is_bias);
    let rounding = spec.layer.filter(|_| spec.role == Role::Linear);
    let rounding = rounding
        .and_then(|layer| weights.config().input_rounding(layer, spec.slot, weight.format()));
    Ok(Linear {
        name: spec.module().to_string(),
        weight,
        bias: bias.map(|bias| vector(device, weights, bias)).transpose()?,
        adapter: None,
        rounding,
    })
}

/// A linear layer, with its bias.
pub(super) fn linear(device: &Device, weights: &dyn Weights, spec: &TensorSpec) -> Result<Linear> {
    let weight = matrix(device, &weights.load(spec)?, spec.module())?;
    linear_with(device, weights, spec, weight)
}

/// Linear layers with the same input: where their weights are of one format, one behind the other in memory, and so their biases,
/// so that few tokens are multiplied with all of them at once.
fn linears_beside(
    device: &Device,
    weights: &dyn Weights,
    specs: &[&TensorSpec],
) -> Result<Vec<Linear>> {
    let packed = specs.iter().map(|spec| weights.load(spec)).collect::<Result<Vec<_>>>()?;
    let names: Vec<&str> = specs.iter().map(|spec| spec.module()).collect();
    let matrices = Matrix::upload_beside(device, &packed, &names)?;
    let mut linears = Vec::with_capacity(specs.len());
    for (spec, matrix) in specs.iter().zip(matrices) {
        linears.push(linear_with(device, weights, spec, matrix)?);
    }
    biases_beside(device, &mut linears)?;
    Ok(linears)
}

/// Moves the biases of layers that all have one behind each other in memory.
fn biases_beside(device: &Device, linears: &mut [Linear]) -> Result<()> {
    let biases: Option<Vec<Tensor>> = linears.iter().map(|linear| linear.bias.clone()).collect();
    let Some(biases) = biases.filter(|biases| biases.len() > 1) else { return Ok(()) };
    let shapes: Vec<Vec<usize>> = biases.iter().map(|bias| bias.shape().to_vec()).collect();
    let Some(moved) = device.allocate_parts(DType::F32, &shapes, "biases")? else {
        return Ok(());
    };
    for (linear, (bias, moved)) in linears.iter_mut().zip(biases.iter().zip(moved)) {
        device.write(&moved, &device.read(bias)?.words)?;
        linear.bias = Some(moved);
    }
    Ok(())
}

fn norm(device: &Device, weights: &dyn Weights, spec: &TensorSpec) -> Result<RmsNormWeight> {
    let is_bias = |other: &&TensorSpec| {
        (other.layer, other.slot, other.role) == (spec.layer, spec.slot, Role::Bias)
    };
    let bias = weights.specs().iter().find(is_bias);
    Ok(RmsNormWeight {
        name: spec.name.clone(),
        gain: vector(device, weights, spec)?,
        epsilon: weights.config().rms_norm_eps as f32,
        bias: bias.map(|bias| vector(device, weights, bias)).transpose()?,
    })
}

/// The specs of a block's own tensors, and of those that all of its stack have from the first of them.
fn specs_of(weights: &dyn Weights, layer: usize) -> Vec<&TensorSpec> {
    let config = weights.config();
    let (first, shared) = (config.first_of_stack(layer), shared_slots(config, layer));
    let owner = |slot: Slot| if shared.contains(&slot) { first } else { layer };
    let is = |spec: &&TensorSpec| spec.layer == Some(owner(spec.slot));
    weights.specs().iter().filter(is).collect()
}

/// What a block has beside its linear layers: norms and a bias of scores. Those that all of a stack have are taken from `before`,
/// another block of it, if there is one: they are on the device once.
fn set_plain(
    device: &Device,
    weights: &dyn Weights,
    layer: usize,
    before: Option<&BlockWeights>,
    block: &mut BlockWeights,
) -> Result<()> {
    let shared = shared_slots(weights.config(), layer);
    let same = |slot: Slot| before.filter(|_| shared.contains(&slot));
    for spec in specs_of(weights, layer) {
        match (spec.role, same(spec.slot)) {
            (Role::Norm, Some(before)) => {
                block.set_norm(spec.slot, before.norm(spec.slot).clone());
            }
            (Role::Norm, None) => block.set_norm(spec.slot, norm(device, weights, spec)?),
            (Role::PositionBias, before) => {
                let bias = match before.and_then(BlockWeights::position) {
                    Some(bias) => bias.clone(),
                    None => {
                        let (name, table) = (spec.name.clone(), vector(device, weights, spec)?);
                        PositionBias { name, table }
                    }
                };
                block.set_position(bias);
            }
            _ => {}
        }
    }
    Ok(())
}

/// A block whose layers with the same input stand beside each other ([`linears_beside`]): for a model that stays on the device as it
/// is. Where weights are replaced one by one, memory would be held until the last of a group is.
///
/// `before`: another block of its stack, if there is one, whose tensors of the whole stack it takes. `experts`: whether they are among
/// its layers.
pub(super) fn block_beside(
    device: &Device,
    weights: &dyn Weights,
    layer: usize,
    before: Option<&BlockWeights>,
    experts: bool,
) -> Result<BlockWeights> {
    let mut block = BlockWeights::default();
    let specs = || weights.specs().iter().filter(|spec| spec.layer == Some(layer));
    set_plain(device, weights, layer, before, &mut block)?;
    let is_linear = |spec: &&TensorSpec| {
        let wanted = experts || spec.slot.expert().is_none();
        is_matrix(spec.role) && wanted
    };
    let linears: Vec<&TensorSpec> = specs().filter(is_linear).collect();
    for group in groups_beside(device, weights, &linears)? {
        for (spec, linear) in group.iter().zip(linears_beside(device, weights, &group)?) {
            block.set_linear(spec.slot, linear);
        }
    }
    Ok(block)
}

/// Layers that are to stand beside each other: those with the same input, and of experts all gates and up projections, expert by expert,
/// and all down projections, so that one call takes the chosen ones of all; where so much is no tensor of the device's, each expert's.
fn groups_beside<'s>(
    device: &Device,
    weights: &dyn Weights,
    linears: &[&'s TensorSpec],
) -> Result<Vec<Vec<&'s TensorSpec>>> {
    let (mut experts, others): (Vec<&TensorSpec>, Vec<&TensorSpec>) =
        linears.iter().partition(|spec| spec.slot.expert().is_some());
    let same_input = |a: &&TensorSpec, b: &&TensorSpec| a.slot.input() == b.slot.input();
    let mut groups: Vec<Vec<_>> = others.chunk_by(same_input).map(<[_]>::to_vec).collect();
    // The sort is stable: a gate stays before its up projection.
    experts.sort_by_key(|spec| (spec.slot.of_no_expert() == Slot::Down, spec.slot.expert()));
    let is_down = |spec: &&TensorSpec| spec.slot.of_no_expert() == Slot::Down;
    for kind in experts.chunk_by(|a, b| is_down(a) == is_down(b)) {
        let bytes =
            kind.iter().map(|spec| Ok(weights.format(spec)?.bytes(spec.rows, spec.columns)));
        let bytes: u64 = bytes.sum::<Result<u64>>()?;
        match bytes <= device.max_tensor_bytes() {
            true => groups.push(kind.to_vec()),
            false => groups.extend(kind.chunk_by(same_input).map(<[_]>::to_vec)),
        }
    }
    Ok(groups)
}

/// A block.
pub fn block(device: &Device, weights: &dyn Weights, layer: usize) -> Result<BlockWeights> {
    let mut block = BlockWeights::default();
    set_plain(device, weights, layer, None, &mut block)?;
    for spec in weights.specs().iter().filter(|s| s.layer == Some(layer)) {
        if is_matrix(spec.role) {
            block.set_linear(spec.slot, linear(device, weights, spec)?);
        }
    }
    Ok(block)
}

/// Whether a tensor of a block is a matrix in a slot of its own.
fn is_matrix(role: Role) -> bool {
    matches!(role, Role::Linear | Role::Router | Role::Table)
}

/// The table of the embedding.
pub(super) fn embedding(device: &Device, weights: &dyn Weights) -> Result<Matrix> {
    let spec = spec(weights, None, Slot::Embedding);
    matrix(device, &weights.load(spec)?, spec.module())
}

/// What stands behind the last block of a model with a head, whose product may be with the embedding.
pub(super) fn head(
    device: &Device,
    weights: &dyn Weights,
    embedding: impl FnOnce() -> Result<Matrix>,
) -> Result<Head> {
    let config = weights.config();
    let own = |slot: Slot| {
        let mut specs = weights.specs().iter();
        specs.find(|spec| (spec.layer, spec.slot) == (None, slot) && spec.role != Role::Bias)
    };
    let final_norm = own(Slot::FinalNorm).map(|spec| norm(device, weights, spec));
    let pooler = own(Slot::Pooler).map(|spec| linear(device, weights, spec));
    Ok(Head {
        norm: final_norm.transpose()?,
        pooler: pooler.transpose()?,
        linear: match config.tied {
            false => linear(device, weights, spec(weights, None, Slot::Head))?,
            true => Linear {
                name: head_name(config).into(),
                weight: embedding()?,
                bias: None,
                adapter: None,
                rounding: None,
            },
        },
        soft_cap: config.head_soft_cap(),
    })
}
