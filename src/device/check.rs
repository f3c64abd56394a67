//! Comparing a device with the reference: one call of a real run, or one case of the table.

use std::sync::Arc;

use super::host::{Args, HostTensor};
use super::kernel::{Kernel, Variant};
use super::runner::Runner;
use super::{Call, Case, CaseData, Device, Storage, Tensor};
use crate::compare::{Agreement, Expected, Measured, compare};
use crate::error::{Error, Result};
use crate::gpu::Access;
use crate::tensor::DType;

/// What outputs hold before a case runs, and what surrounds every binding: NaN as f32 and as two f16, so that an
/// element that was not written, or read beyond its end, shows.
const POISON: u32 = 0x7fff_7fff;

/// Words after each binding that no kernel may write, nor let count.
const GUARD_WORDS: usize = 64;

/// What those words hold behind an output: finite, so that a NaN written there shows.
const OUTPUT_GUARD: u32 = 0x4b1d_4b1d;

/// What they hold behind an input: NaN for numbers, so that what is read there shows in a sum; 0 for integers, which
/// passes for an index, so that a row too many is computed and found.
pub fn guard_word(dtype: DType, access: Access) -> u32 {
    match (access, dtype) {
        (Access::Read, DType::U32) => 0,
        (Access::Read, _) => POISON,
        _ => OUTPUT_GUARD,
    }
}

/// Why a case failed.
#[derive(Debug)]
pub enum Failure {
    /// The call could not be made.
    Error(Error),
    /// An output differs.
    Differs {
        /// Names the binding and the worst element.
        text: String,
        /// The error there over its bound; not finite where either value is not.
        worst: f64,
    },
    /// Words after the end of this binding were written.
    OutOfBounds(&'static str),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Error(error) => write!(f, "{error}"),
            Failure::Differs { text, .. } => f.write_str(text),
            Failure::OutOfBounds(name) => write!(f, "binding {name}: written beyond its end"),
        }
    }
}

/// Runs a call on the GPU and on the reference, on the inputs that the GPU holds, and compares every output.
pub(super) fn run_checked(runner: &Runner, call: &Call<'_>) -> Result<()> {
    let read = |tensor: &&Tensor| -> Result<HostTensor> {
        let bytes = runner.gpu().read(tensor.buffer())?;
        Ok(HostTensor::from_bytes(tensor.dtype, &tensor.shape, &bytes[..tensor.bytes() as usize]))
    };
    let start = std::time::Instant::now();
    let before = call.tensors.iter().map(read).collect::<Result<Vec<_>>>()?;
    let fetched = start.elapsed();
    for (index, binding) in call.kernel.outputs() {
        // What stands there from an earlier call may be the very result; unwritten elements must show.
        if binding.access == Access::Write {
            let buffer = call.tensors[index].buffer();
            let poison = vec![POISON; buffer.bytes().div_ceil(4) as usize];
            runner.gpu().write(buffer, bytemuck::cast_slice(&poison))?;
        }
    }
    runner.run(call)?;
    let args = Args {
        variant: &call.variant,
        parameters: call.parameters,
        tensors: before.iter().map(HostTensor::view).collect(),
    };
    let expected = (call.kernel.reference)(&args);
    let referred = start.elapsed();
    let after = call
        .kernel
        .outputs()
        .map(|(index, _)| read(&call.tensors[index]))
        .collect::<Result<Vec<_>>>()?;
    let waited = start.elapsed();
    let judged = judge(call.kernel, &expected, &after);
    tracing::debug!(
        "checked {}: inputs {fetched:?}, reference {:?}, device {:?}, comparison {:?}",
        call.kernel.name,
        referred - fetched,
        waited - referred,
        start.elapsed() - waited,
    );
    judged
        .map(|_| ())
        .map_err(|failure| Error::Divergence { case: call.describe(), report: failure.to_string() })
}

fn judge(
    kernel: &Kernel,
    expected: &[Expected],
    measured: &[HostTensor],
) -> Result<Agreement, Failure> {
    let written = kernel.outputs().count();
    assert!(
        expected.len() == written && measured.len() == written,
        "{}: one result per output",
        kernel.name
    );
    let mut worst = Agreement::default();
    for (((_, binding), expected), tensor) in kernel.outputs().zip(expected).zip(measured) {
        let measured = Measured { values: tensor.view().to_f64() };
        let agreement = compare(expected, &measured).map_err(|d| Failure::Differs {
            text: format!("{}: {d}", binding.name),
            worst: (d.measured - d.expected).abs() / d.bound,
        })?;
        worst.nmse = worst.nmse.max(agreement.nmse);
        worst.worst = worst.worst.max(agreement.worst);
    }
    Ok(worst)
}

/// Runs one case of a kernel on a GPU, with poisoned outputs and guarded bindings, and compares with the reference.
pub fn check_case(
    runner: &Runner,
    kernel: &'static Kernel,
    variant: &Variant,
    case: &Case,
) -> Result<Agreement, Failure> {
    let data = (case.make)(variant);
    let mut tensors = Vec::new();
    for (host, binding) in data.tensors.iter().zip(kernel.bindings) {
        tensors.push(guarded(runner, host, binding.access)?);
    }
    let references: Vec<&Tensor> = tensors.iter().collect();
    let call = Call {
        kernel,
        variant: variant.clone(),
        parameters: &data.parameters,
        tensors: &references,
    };
    call.assert_promises();
    runner.run(&call)?;
    let mut after = Vec::new();
    for (index, binding) in kernel.outputs() {
        let bytes = runner.gpu().read(tensors[index].buffer())?;
        let host = &data.tensors[index];
        let (payload, guard) = bytes.split_at(host.words.len() * 4);
        if guard.chunks_exact(4).any(|word| word != OUTPUT_GUARD.to_le_bytes()) {
            return Err(Failure::OutOfBounds(binding.name));
        }
        after.push(HostTensor::from_bytes(host.dtype, &host.shape, &payload[..host.bytes().len()]));
    }
    judge(kernel, &reference(kernel, variant, &data), &after)
}

/// Runs one case of a kernel on the CPU device and compares with the reference.
pub fn check_cpu_case(
    kernel: &'static Kernel,
    variant: &Variant,
    case: &Case,
) -> Result<Agreement, Failure> {
    let data = (case.make)(variant);
    let mut tensors = Vec::new();
    for (host, binding) in data.tensors.iter().zip(kernel.bindings) {
        let words = if binding.access == Access::Write {
            vec![POISON; host.words.len()]
        } else {
            host.words.clone()
        };
        tensors.push(Device::Cpu.upload_words(host.dtype, &host.shape, &words, binding.name)?);
    }
    let references: Vec<&Tensor> = tensors.iter().collect();
    let call = Call {
        kernel,
        variant: variant.clone(),
        parameters: &data.parameters,
        tensors: &references,
    };
    Device::Cpu.run(&call)?;
    let after = kernel
        .outputs()
        .map(|(index, _)| Device::Cpu.read(&tensors[index]))
        .collect::<Result<Vec<_>>>()?;
    judge(kernel, &reference(kernel, variant, &data), &after)
}

fn reference(kernel: &Kernel, variant: &Variant, data: &CaseData) -> Vec<Expected> {
    let tensors = data.tensors.iter().map(HostTensor::view).collect();
    (kernel.reference)(&Args { variant, parameters: &data.parameters, tensors })
}

fn guarded(runner: &Runner, host: &HostTensor, access: Access) -> Result<Tensor> {
    let mut words =
        if access == Access::Write { vec![POISON; host.words.len()] } else { host.words.clone() };
    words.resize(words.len() + GUARD_WORDS, guard_word(host.dtype, access));
    let buffer = runner.gpu().allocate(4 * words.len() as u64, "a case")?;
    runner.gpu().write(&buffer, bytemuck::cast_slice(&words))?;
    Ok(Tensor {
        dtype: host.dtype,
        shape: host.shape.clone(),
        storage: Storage::Gpu(Arc::new(buffer)),
    })
}

/// A case on a device, ready to run again and again.
#[derive(Debug)]
pub struct UploadedCase {
    kernel: &'static Kernel,
    variant: Variant,
    parameters: Vec<u8>,
    tensors: Vec<Tensor>,
}

impl UploadedCase {
    /// The same inputs, but the results go where another case's go: of calls that alternate, each waits for the one before.
    #[must_use]
    pub fn writing_to(mut self, other: &UploadedCase) -> Self {
        for (index, _) in self.kernel.outputs() {
            self.tensors[index] = other.tensors[index].clone();
        }
        self
    }

    /// Records one run.
    pub fn run(&self, runner: &Runner) -> Result<()> {
        let tensors: Vec<&Tensor> = self.tensors.iter().collect();
        let variant = self.variant.clone();
        runner.run(&Call {
            kernel: self.kernel,
            variant,
            parameters: &self.parameters,
            tensors: &tensors,
        })
    }
}

/// Copies a case's bindings to the device.
pub fn upload_case(
    runner: &Runner,
    kernel: &'static Kernel,
    variant: &Variant,
    data: &CaseData,
) -> Result<UploadedCase> {
    let upload =
        |(host, binding): (&HostTensor, &super::Binding)| guarded(runner, host, binding.access);
    let tensors =
        data.tensors.iter().zip(kernel.bindings).map(upload).collect::<Result<Vec<_>>>()?;
    Ok(UploadedCase {
        kernel,
        variant: variant.clone(),
        parameters: data.parameters.clone(),
        tensors,
    })
}
