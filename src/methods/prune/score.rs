//! Scores of channels: how much the loss, or the weights alone, say they matter (Ma et al. 2023, LLM-Pruner, arXiv
//! 2305.11627, section 3.2, and its code; Sun et al. 2023, Wanda, arXiv 2306.11695).
//!
//! A group's channels are scored tensor by tensor on the device: every tensor gives one sum for each of its rows or columns.
//! Sums over the channels of a unit, then over the group's tensors, make a unit's score.

use std::collections::{BTreeMap, HashMap};

use super::memory::estimate;
use crate::device::{Device, HostTensor, Random, Reading, Tensor};
use crate::error::{Error, Result};
use crate::families::{layer_name, module_name};
use crate::graph::{Gradient, Parameter};
use crate::interrupt;
use crate::kernels::dequantize;
use crate::kernels::matrix::Matrix;
use crate::kernels::residual::add::add;
use crate::kernels::score::blocks::blocks;
use crate::kernels::score::{Form, Reduction, columns, fisher, rows as row_sums};
use crate::methods::calibration::Rows;
use crate::model::{
    Axis, BackwardOptions, Group, Outline, Pass, PrunableDim, WeightSource, Weights, gradients,
};
use crate::tensor::DType;
use crate::walk::{Kind, Statistics, Through, Walk};

/// How channels are scored. g is the gradient of the mean loss of all calibration tokens, F the mean over sequences of the
/// squared gradient of each one's mean loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Score {
    /// Sum of |w|.
    L1,
    /// Sum of w², without a root.
    L2,
    /// |sum of w g| over a row or column.
    Vectorize,
    /// Sum of |w g|: Taylor, first order.
    ParamFirst,
    /// Sum of w² F: Taylor, second order.
    ParamSecond,
    /// Sum of |w g - w² F / 2|: both.
    ParamMix,
    /// Drawn, by the seed.
    Random,
}

impl Score {
    /// Every score, in the order of reports.
    pub const ALL: [Score; 7] = [
        Score::L1,
        Score::L2,
        Score::Vectorize,
        Score::ParamFirst,
        Score::ParamSecond,
        Score::ParamMix,
        Score::Random,
    ];

    /// The name in flags, recipes and files.
    pub fn name(self) -> &'static str {
        match self {
            Score::L1 => "l1",
            Score::L2 => "l2",
            Score::Vectorize => "vectorize",
            Score::ParamFirst => "param_first",
            Score::ParamSecond => "param_second",
            Score::ParamMix => "param_mix",
            Score::Random => "random",
        }
    }

    /// The score of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|score| score.name() == name)
    }

    /// Whether it takes calibration tokens.
    pub fn needs_gradient(self) -> bool {
        self.form().is_some_and(|form| form.needs_gradient() || form.needs_fisher())
    }

    /// Whether it takes each sequence's gradient apart.
    pub fn needs_sequences(self) -> bool {
        self.form().is_some_and(Form::needs_fisher)
    }

    fn form(self) -> Option<Form> {
        Some(match self {
            Score::L1 => Form::L1,
            Score::L2 => Form::L2,
            Score::Vectorize => Form::Product,
            Score::ParamFirst => Form::First,
            Score::ParamSecond => Form::Second,
            Score::ParamMix => Form::Mixed,
            Score::Random => return None,
        })
    }
}

/// Tokens that go through a layer at once: enough to keep a GPU busy.
pub const AT_ONCE: usize = 8192;

/// Sums over rows or columns of tensors, one a channel, by score.
#[derive(Debug, Default)]
pub struct Sums {
    sums: HashMap<(Score, String, Axis), Vec<f32>>,
    /// The module names of blocks.
    blocks: Vec<String>,
    /// The calibration's mean loss, where gradients were taken.
    pub loss: Option<f64>,
}

/// The sums that `scores` of `groups` are made of. `layers` and `weights` are one model; `progress` is told of what is done
/// and to do.
pub fn sums(
    layers: WeightSource<'_>,
    weights: &dyn Weights,
    pass: &Pass<'_>,
    scores: &[Score],
    groups: &[Group],
    rows: Option<&Rows>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Sums> {
    let mut axes: BTreeMap<&str, Vec<Axis>> = BTreeMap::new();
    for member in groups.iter().flat_map(|group| &group.members) {
        let axes = axes.entry(&member.tensor).or_default();
        if !axes.contains(&member.axis) {
            axes.push(member.axis);
        }
    }
    if groups.iter().any(|group| group.width == PrunableDim::Layers) {
        for spec in weights.specs().iter().filter(|s| s.layer().is_some()) {
            let axes = axes.entry(&spec.name).or_default();
            if axes.is_empty() {
                axes.push(Axis::Columns);
            }
        }
    }
    let (gradient_based, plain): (Vec<Score>, Vec<Score>) = scores
        .iter()
        .filter(|score| score.form().is_some())
        .partition(|score| score.needs_gradient());
    let device = pass.device;
    let mut collector = SumCollector { device, axes: &axes, readings: Vec::new() };
    if !plain.is_empty() {
        let specs = weights.specs().iter();
        let wanted: Vec<_> = specs.filter(|spec| axes.contains_key(spec.name.as_str())).collect();
        for (done, spec) in wanted.iter().enumerate() {
            interrupt::check()?;
            if gradient_based.is_empty() {
                progress(done, wanted.len());
            }
            let matrix = Matrix::upload(device, &weights.load(spec)?, &spec.name)?;
            let weight = dense(device, &Parameter::Matrix(matrix))?;
            collector.collect(&plain, &spec.name, &weight, None, None)?;
        }
    }
    let mut loss = None;
    if !gradient_based.is_empty() {
        let rows = rows.ok_or_else(|| Error::Argument {
            argument: "--calib".into(),
            expected: format!("calibration tokens for {}", gradient_based[0].name()),
            found: "none".into(),
        })?;
        let shape = Some((rows.samples, rows.length()));
        let work =
            estimate(&Outline::of(weights)?, &gradient_based, groups, shape, pass.compute).work;
        let keep = device.spare_bytes().saturating_sub(work);
        loss = Some(gradient_sums(
            layers,
            pass,
            &gradient_based,
            rows,
            keep,
            &mut collector,
            progress,
        )?);
    }
    let mut sums = HashMap::new();
    for (key, reading) in collector.readings {
        let mut values = device.finish(reading)?.to_f32();
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::NotFinite {
                what: format!("score {} of {}", key.0.name(), key.1),
                found: value.to_string(),
            });
        }
        if key.0 == Score::Vectorize {
            values.iter_mut().for_each(|value| *value = value.abs());
        }
        sums.insert(key, values);
    }
    let config = layers.config();
    let blocks = (0..config.layers()).map(|layer| layer_name(config, layer)).collect();
    Ok(Sums { sums, blocks, loss })
}

/// The sums over a tensor's gradients so far, until the last microbatch of them is there.
#[derive(Default)]
struct Kept {
    gradient: Option<Tensor>,
    fisher: Option<Tensor>,
}

fn gradient_sums(
    layers: WeightSource<'_>,
    pass: &Pass<'_>,
    scores: &[Score],
    rows: &Rows,
    keep: u64,
    collector: &mut SumCollector<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<f64> {
    let (ids, sequences) = (&rows.ids, rows.samples);
    let device = pass.device;
    let forms = || scores.iter().filter_map(|score| score.form());
    let (gradient, squares) = (forms().any(Form::needs_gradient), forms().any(Form::needs_fisher));
    let axes = collector.axes;
    let wanted = BackwardOptions {
        tensor: &|name| axes.contains_key(name),
        by_sequence: squares,
        tokens: AT_ONCE,
        activation_budget: keep,
        ..BackwardOptions::ALL
    };
    let parts = wanted.parts(sequences, rows.length());
    let mut under_way: HashMap<String, Kept> = HashMap::new();
    let mut sink = |part: Gradient| {
        interrupt::check()?;
        let kept = under_way.entry(part.name.clone()).or_default();
        if squares {
            // A part is 1 / sequences of the gradient of its sequence's own mean loss.
            let (whole, later) = match &kept.fisher {
                Some(fisher) => (fisher.clone(), true),
                None => {
                    let shape = part.values.shape();
                    (device.allocate(DType::F32, shape, "squared gradients")?, false)
                }
            };
            fisher::fisher(device, &part.values, sequences as f32, &whole, later)?;
            kept.fisher = Some(whole);
        }
        if gradient {
            match &kept.gradient {
                Some(sum) => add(device, &part.values, sum)?,
                None => kept.gradient = Some(part.values),
            }
        }
        if part.part + 1 == parts {
            let kept = under_way.remove(&part.name).unwrap_or_default();
            let weight = dense(device, &part.weight)?;
            let (first, second) = (kept.gradient.as_ref(), kept.fisher.as_ref());
            collector.collect(scores, &part.name, &weight, first, second)?;
        }
        Ok(())
    };
    gradients(layers, pass, ids, sequences, wanted, progress, &mut sink)
}

/// A parameter as f32, a vector in one row.
fn dense(device: &Device, weight: &Parameter) -> Result<Tensor> {
    let matrix = match weight {
        Parameter::Vector(values) => return Ok(values.clone()),
        Parameter::Matrix(matrix) => matrix,
        Parameter::Output => unreachable!("scores are asked for of weights"),
    };
    let (format, columns) = (matrix.format(), matrix.columns());
    if let [chunk] = matrix.chunks() {
        return dequantize::rows::rows(device, chunk, format, columns);
    }
    Err(Error::OutOfMemory {
        what: format!("a matrix of {} x {columns} in one binding", matrix.rows()),
        bytes: 4 * (matrix.rows() * columns) as u64,
        used: 0,
        budget: device.max_tensor_bytes(),
    })
}

/// Sums of tensors, on their way back from the device.
struct SumCollector<'a> {
    device: &'a Device,
    axes: &'a BTreeMap<&'a str, Vec<Axis>>,
    readings: Vec<((Score, String, Axis), Reading)>,
}

impl SumCollector<'_> {
    fn collect(
        &mut self,
        scores: &[Score],
        name: &str,
        weight: &Tensor,
        gradient: Option<&Tensor>,
        fisher: Option<&Tensor>,
    ) -> Result<()> {
        let device = self.device;
        let shape = match weight.shape() {
            [length] => [1, *length],
            shape => [shape[0], shape[1]],
        };
        for axis in &self.axes[name] {
            for score in scores {
                let form = score.form().expect("only scores of weights are summed");
                let count = shape[usize::from(*axis == Axis::Columns)];
                let result = device.allocate(DType::F32, &[count], "scores")?;
                let weight = weight.reshaped(&shape);
                let sum = match axis {
                    Axis::Rows => row_sums::rows,
                    Axis::Columns => columns::columns,
                };
                let [gradient, fisher] =
                    [gradient, fisher].map(|part| part.map(|part| part.reshaped(&shape)));
                let (first, second) = (gradient.as_ref(), fisher.as_ref());
                sum(device, form, &weight, first, second, &result, false)?;
                let key = (*score, name.to_string(), *axis);
                self.readings.push((key, device.read_later(&result)?));
            }
        }
        Ok(())
    }
}

impl Sums {
    /// The scores of a group's units: sums over the channels of a unit, then `reduction` over the group's tensors. Of whole
    /// blocks, over the block's tensors. `random` is drawn from `seed`, a sequence of its own for each group.
    pub fn unit_scores(
        &self,
        device: &Device,
        score: Score,
        group: &Group,
        reduction: Reduction,
        seed: u64,
    ) -> Result<Vec<f32>> {
        if score == Score::Random {
            let own = group.layer.map_or(0, |layer| layer as u64 + 1);
            let width = match group.width {
                PrunableDim::FeedForward => 0,
                PrunableDim::KvGroup => 1,
                PrunableDim::Hidden => 2,
                PrunableDim::Layers => 3,
                PrunableDim::Head => 4,
            };
            let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (own << 8 | width);
            let mut random = Random::new(seed);
            return Ok((0..group.units).map(|_| random.value() + 1.0).collect());
        }
        let of = |tensor: &str, axis: Axis| {
            let key = (score, tensor.to_string(), axis);
            self.sums.get(&key).expect("sums were taken of every member")
        };
        let upload = |values: &[f32], shape: &[usize]| {
            device.upload(&HostTensor::from_f32(DType::F32, shape, values), "scores")
        };
        let mut members: Vec<Vec<f32>> = Vec::new();
        if group.width == PrunableDim::Layers {
            // Tensors of a block in their order, each a member: its whole sum.
            for layer in 0..group.units {
                let prefix = format!("{}.", self.blocks[layer]);
                let mut names: Vec<_> = self.sums.keys().collect();
                names.retain(|key| key.0 == score && key.1.starts_with(&prefix));
                names.sort_by(|a, b| (&a.1, a.2 as u8).cmp(&(&b.1, b.2 as u8)));
                names.dedup_by(|a, b| a.1 == b.1);
                for (place, key) in names.into_iter().enumerate() {
                    let values = &self.sums[key];
                    let all = upload(values, &[1, values.len()])?;
                    let sum = device.read(&blocks(device, Reduction::Sum, &all, values.len())?)?;
                    if members.len() <= place {
                        members.push(Vec::new());
                    }
                    members[place].extend(sum.to_f32());
                }
            }
        } else {
            for member in &group.members {
                let values = of(&member.tensor, member.axis);
                let all = upload(values, &[1, values.len()])?;
                let folded = blocks(device, Reduction::Sum, &all, member.span)?;
                members.push(device.read(&folded)?.to_f32());
            }
        }
        let all = upload(&members.concat(), &[members.len(), group.units])?;
        Ok(device.read(&blocks(device, reduction, &all, 1)?)?.to_f32())
    }
}

/// The L2 norm of each input channel of every linear layer over all calibration tokens: (module, norms).
pub fn input_norms(
    source: WeightSource<'_>,
    pass: &Pass<'_>,
    rows: &Rows,
) -> Result<Vec<(String, Vec<f32>)>> {
    let (config, kinds) = (source.config(), [Kind::Squares]);
    let mut walk = Walk::new(source, *pass, &rows.ids, rows.samples, AT_ONCE)?;
    let mut norms = Vec::new();
    while let Some(step) = walk.next_block()? {
        let (layer, slots) = (step.layer(), step.linears());
        let mut statistics = Statistics::new(pass.device, &kinds, rows.length());
        step.advance(Through::Parent, Some(&mut statistics))?;
        let sums = statistics.read(|slot| module_name(config, layer, slot))?;
        for slot in slots {
            if let Some(squares) = sums.sum(slot, Kind::Squares) {
                let roots = squares.iter().map(|square| square.sqrt()).collect();
                norms.push((module_name(config, layer, slot), roots));
            }
        }
    }
    Ok(norms)
}
