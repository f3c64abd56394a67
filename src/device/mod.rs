//! What a kernel is, and the three things that run one.
//!
//! [`Device::Cpu`] runs a kernel's own f32 version, or its reference. [`Device::Gpu`] runs the shader.
//! [`Device::Checked`] runs the shader and the reference on the same inputs and stops at the first divergence.

mod case;
mod check;
mod compose;
mod host;
mod kernel;
mod runner;

use std::sync::{Arc, PoisonError, RwLock};

pub use case::{Case, CaseData, CaseOf, Poison, Random, Sizes};
pub use check::{Failure, UploadedCase, check_case, check_cpu_case, guard_word, upload_case};
pub use compose::{complaint_of, compose, compose_with, fragment, fragments};
pub use host::{Args, HostTensor, Outputs, View};
pub(crate) use kernel::params;
pub use kernel::{Binding, Element, Field, Kernel, Parameters, Variant, binding, fold};
pub use runner::Runner;

use crate::error::Result;
pub use crate::gpu::Recording;
use crate::gpu::{Buffer, Capabilities, Cost, Gpu, Pending};
use crate::tensor::DType;

/// Where kernels run.
#[derive(Debug)]
pub enum Device {
    /// This machine's processor.
    Cpu,
    /// A GPU.
    Gpu(Runner),
    /// A GPU, every call of which is compared with the reference.
    Checked(Runner),
}

/// A dense tensor on a device. Cloning shares the storage.
#[derive(Clone, Debug)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    storage: Storage,
}

#[derive(Clone, Debug)]
enum Storage {
    Host(Arc<RwLock<Vec<u32>>>),
    Gpu(Arc<Buffer>),
}

impl Tensor {
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> u64 {
        (self.len() * self.dtype.size()) as u64
    }

    /// Whether it is the other one: the same storage, not one of the same elements.
    pub fn is(&self, other: &Tensor) -> bool {
        match (&self.storage, &other.storage) {
            (Storage::Host(a), Storage::Host(b)) => Arc::ptr_eq(a, b),
            (Storage::Gpu(a), Storage::Gpu(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The same elements as 32-bit words, (rows, words): the codes of a matrix of plain numbers. Rows are whole words.
    pub fn words(&self) -> Tensor {
        let words = self.len() * self.dtype.size() / 4;
        Tensor {
            dtype: DType::U32,
            shape: vec![self.shape[0], words / self.shape[0]],
            storage: self.storage.clone(),
        }
    }

    /// The same elements in another shape of as many.
    pub fn reshaped(&self, shape: &[usize]) -> Tensor {
        assert_eq!(self.len(), shape.iter().product::<usize>(), "no element is lost");
        Tensor { shape: shape.to_vec(), ..self.clone() }
    }

    /// Tensors that stand one behind the other in memory as one, of their columns. `None` where they do not: only
    /// [`Device::allocate_parts`] makes such.
    pub fn joined(parts: &[&Tensor]) -> Option<Tensor> {
        let (first, rest) = parts.split_first()?;
        let mut joined = (*first).clone();
        for part in rest {
            let (Storage::Gpu(before), Storage::Gpu(next)) = (&joined.storage, &part.storage)
            else {
                return None;
            };
            let alike = joined.dtype == part.dtype && joined.shape[1..] == part.shape[1..];
            joined.storage = Storage::Gpu(Arc::new(before.with(next).filter(|_| alike)?));
            joined.shape[0] += part.shape[0];
        }
        Some(joined)
    }

    fn host(&self) -> Arc<RwLock<Vec<u32>>> {
        match &self.storage {
            Storage::Host(host) => Arc::clone(host),
            Storage::Gpu(_) => panic!("a tensor stays on the device that made it"),
        }
    }

    fn buffer(&self) -> &Buffer {
        match &self.storage {
            Storage::Gpu(buffer) => buffer,
            Storage::Host(_) => panic!("a tensor stays on the device that made it"),
        }
    }
}

/// One run of a kernel.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The row of the kernel table.
    pub kernel: &'static Kernel,
    /// The chosen variant.
    pub variant: Variant,
    /// Bytes of the parameter struct.
    pub parameters: &'a [u8],
    /// All bindings in order.
    pub tensors: &'a [&'a Tensor],
}

impl Call<'_> {
    fn assert_promises(&self) {
        let Kernel { name, bindings, parameters, .. } = self.kernel;
        assert_eq!(
            self.parameters.len(),
            parameters.bytes,
            "{name}: parameters are the kernel's struct"
        );
        assert_eq!(self.tensors.len(), bindings.len(), "{name}: one tensor per binding");
        for (tensor, binding) in self.tensors.iter().zip(*bindings) {
            let dtype = self.variant.dtype(binding.element);
            assert_eq!(tensor.dtype, dtype, "{name}: type of binding {}", binding.name);
        }
    }

    /// The text that names the call in messages.
    pub fn describe(&self) -> String {
        let shapes: Vec<_> = self
            .kernel
            .bindings
            .iter()
            .zip(self.tensors)
            .map(|(b, t)| format!("{}={:?}", b.name, t.shape))
            .collect();
        format!("{} [{}] {}", self.kernel.name, self.variant.label(), shapes.join(" "))
    }
}

/// A readback under way on any device.
#[derive(Debug)]
pub struct Reading {
    dtype: DType,
    shape: Vec<usize>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Ready(Vec<u32>),
    Pending(Pending),
}

impl Device {
    /// The GPU behind it, if there is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.runner().map(Runner::gpu)
    }

    /// What kernel variants may use. The CPU runs them all.
    pub fn capabilities(&self) -> Capabilities {
        match self.gpu() {
            Some(gpu) => gpu.capabilities(),
            None => Capabilities { f16: true, ..Capabilities::default() },
        }
    }

    /// What runs its shaders, if it is a GPU.
    pub fn runner(&self) -> Option<&Runner> {
        match self {
            Device::Cpu => None,
            Device::Gpu(runner) | Device::Checked(runner) => Some(runner),
        }
    }

    /// What one call may ask for, so that it stays short enough to be one submit.
    pub fn call_limit(&self) -> Cost {
        match self.gpu() {
            Some(gpu) => gpu.submit_cost(),
            // Long enough to keep every core busy, short enough that Ctrl-C is felt at once.
            None => Cost { operations: 1e10, bytes: 1e10 },
        }
    }

    /// Bytes that one tensor may have.
    pub fn max_tensor_bytes(&self) -> u64 {
        self.gpu().map_or(1 << 40, Gpu::max_binding)
    }

    /// Bytes that new tensors may take, about; of a processor's, 1 GiB.
    pub fn spare_bytes(&self) -> u64 {
        self.gpu().map_or(1 << 30, Gpu::spare_bytes)
    }

    /// Tensors that a kernel may take.
    pub fn max_bindings(&self) -> u32 {
        self.gpu().map_or(u32::MAX, Gpu::max_bindings)
    }

    /// A name for reports: `cpu` or the adapter's name.
    pub fn name(&self) -> String {
        self.gpu().map_or_else(|| "cpu".into(), |gpu| gpu.adapter().info.name.clone())
    }

    /// A tensor with undefined contents. `what` names it in errors.
    pub fn allocate(&self, dtype: DType, shape: &[usize], what: &str) -> Result<Tensor> {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let storage = match self.gpu() {
            Some(gpu) => Storage::Gpu(Arc::new(gpu.allocate(bytes as u64, what)?)),
            None => Storage::Host(Arc::new(RwLock::new(vec![0; bytes.div_ceil(4)]))),
        };
        Ok(Tensor { dtype, shape: shape.to_vec(), storage })
    }

    /// Tensors with undefined contents, one behind the other in memory, so that [`Tensor::joined`] gives them as one. `None` where
    /// the device could not bind each by itself or all at once; on a processor, which gains nothing by it.
    pub fn allocate_parts(
        &self,
        dtype: DType,
        shapes: &[Vec<usize>],
        what: &str,
    ) -> Result<Option<Vec<Tensor>>> {
        let Some(gpu) = self.gpu() else { return Ok(None) };
        let bytes = |shape: &Vec<usize>| (shape.iter().product::<usize>() * dtype.size()) as u64;
        let ends: Vec<u64> = shapes
            .iter()
            .scan(0, |end, shape| {
                *end += bytes(shape);
                Some(*end)
            })
            .collect();
        let Some((whole, starts)) = ends.split_last() else { return Ok(None) };
        let aligned = starts.iter().all(|start| start.is_multiple_of(gpu.part_alignment()));
        if !aligned || *whole > gpu.max_binding() {
            return Ok(None);
        }
        let all = gpu.allocate(*whole, what)?;
        let part = |(shape, end): (&Vec<usize>, &u64)| {
            let part = all.part(end - bytes(shape), bytes(shape));
            Tensor { dtype, shape: shape.clone(), storage: Storage::Gpu(Arc::new(part)) }
        };
        Ok(Some(shapes.iter().zip(&ends).map(part).collect()))
    }

    /// A copy of a host tensor.
    pub fn upload(&self, tensor: &HostTensor, what: &str) -> Result<Tensor> {
        self.upload_words(tensor.dtype, &tensor.shape, &tensor.words, what)
    }

    /// A copy of host words: integers, or elements of a smaller type packed into words.
    pub fn upload_words(
        &self,
        dtype: DType,
        shape: &[usize],
        words: &[u32],
        what: &str,
    ) -> Result<Tensor> {
        if let Some(gpu) = self.gpu() {
            let tensor = self.allocate(dtype, shape, what)?;
            gpu.write(tensor.buffer(), bytemuck::cast_slice(words))?;
            return Ok(tensor);
        }
        Ok(Tensor {
            dtype,
            shape: shape.to_vec(),
            storage: Storage::Host(Arc::new(RwLock::new(words.to_vec()))),
        })
    }

    /// Replaces a tensor's contents, in order with the calls made before.
    pub fn write(&self, tensor: &Tensor, words: &[u32]) -> Result<()> {
        match &tensor.storage {
            Storage::Gpu(buffer) => {
                let gpu = self.gpu().expect("a GPU tensor is used with its device");
                gpu.write(buffer, bytemuck::cast_slice(words))
            }
            Storage::Host(host) => {
                host.write().unwrap_or_else(PoisonError::into_inner)[..words.len()]
                    .copy_from_slice(words);
                Ok(())
            }
        }
    }

    /// Starts copying a tensor back; [`Device::finish`] waits for it. Calls made meanwhile run beside the copy.
    pub fn read_later(&self, tensor: &Tensor) -> Result<Reading> {
        let source = match &tensor.storage {
            Storage::Host(host) => {
                Source::Ready(host.read().unwrap_or_else(PoisonError::into_inner).clone())
            }
            Storage::Gpu(buffer) => {
                let gpu = self.gpu().expect("a GPU tensor is used with its device");
                Source::Pending(gpu.read_later(buffer)?)
            }
        };
        Ok(Reading { dtype: tensor.dtype, shape: tensor.shape.clone(), source })
    }

    /// Waits for a readback.
    pub fn finish(&self, reading: Reading) -> Result<HostTensor> {
        let Reading { dtype, shape, source } = reading;
        match source {
            Source::Ready(words) => Ok(HostTensor { dtype, shape, words }),
            Source::Pending(pending) => {
                let gpu = self.gpu().expect("a GPU readback is finished on its device");
                Ok(HostTensor::from_bytes(dtype, &shape, &gpu.wait(pending)?))
            }
        }
    }

    /// A tensor's contents after all calls made before.
    pub fn read(&self, tensor: &Tensor) -> Result<HostTensor> {
        self.finish(self.read_later(tensor)?)
    }

    /// Runs `run`; on a GPU what it calls is taken down, to be run again ([`Gpu::record`]). `None` elsewhere: it has to be called again.
    pub fn record<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<(T, Option<Recording>)> {
        match self {
            Device::Gpu(runner) => {
                runner.gpu().record(run).map(|(result, recording)| (result, Some(recording)))
            }
            Device::Cpu | Device::Checked(_) => run().map(|result| (result, None)),
        }
    }

    /// Runs a recording of this device again.
    pub fn replay(&self, recording: &Recording) -> Result<()> {
        let gpu = self.gpu().expect("a recording is run on its device");
        gpu.replay(recording)
    }

    /// Runs a kernel with these parameters and bindings.
    pub fn call<P: bytemuck::NoUninit>(
        &self,
        kernel: &'static Kernel,
        variant: Variant,
        parameters: &P,
        tensors: &[&Tensor],
    ) -> Result<()> {
        self.run(&Call { kernel, variant, parameters: bytemuck::bytes_of(parameters), tensors })
    }

    /// Runs a kernel, or records it to be run before the next readback.
    pub fn run(&self, call: &Call<'_>) -> Result<()> {
        call.assert_promises();
        match self {
            Device::Cpu => run_cpu(call),
            Device::Gpu(runner) => runner.run(call),
            Device::Checked(runner) => check::run_checked(runner, call),
        }
    }
}

fn run_cpu(call: &Call<'_>) -> Result<()> {
    let storages: Vec<Arc<RwLock<Vec<u32>>>> =
        call.tensors.iter().map(|tensor| tensor.host()).collect();
    // Written bindings are taken out of their storage while the kernel runs, so that nothing is copied and no lock is
    // held twice where a tensor is bound twice.
    let mut written: Vec<(usize, DType, Vec<u32>)> = Vec::new();
    for (index, _) in call.kernel.outputs() {
        let words =
            std::mem::take(&mut *storages[index].write().unwrap_or_else(PoisonError::into_inner));
        written.push((index, call.tensors[index].dtype, words));
    }
    let guards: Vec<_> =
        storages.iter().map(|s| s.read().unwrap_or_else(PoisonError::into_inner)).collect();
    let mut tensors: Vec<View<'_>> = call
        .tensors
        .iter()
        .zip(&guards)
        .map(|(tensor, words)| View { dtype: tensor.dtype, shape: &tensor.shape, words })
        .collect();
    match call.kernel.cpu {
        Some(cpu) => {
            let args = Args { variant: &call.variant, parameters: call.parameters, tensors };
            let tensors = written
                .iter_mut()
                .map(|(_, dtype, words)| (*dtype, words.as_mut_slice()))
                .collect();
            cpu(&args, &mut Outputs { tensors });
        }
        None => {
            for (index, dtype, words) in &written {
                tensors[*index] = View { dtype: *dtype, shape: &call.tensors[*index].shape, words };
            }
            let args = Args { variant: &call.variant, parameters: call.parameters, tensors };
            let results = (call.kernel.reference)(&args);
            drop(args);
            for ((_, dtype, words), expected) in written.iter_mut().zip(results) {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
                for (index, value) in expected.values.iter().enumerate() {
                    dtype.set(bytes, index, *value);
                }
            }
        }
    }
    drop(guards);
    for (index, _, words) in written {
        *storages[index].write().unwrap_or_else(PoisonError::into_inner) = words;
    }
    Ok(())
}
