//! Running kernel calls on a GPU: from a variant to a compiled pipeline, from tensors to buffers.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::compose::{compose_with, fragment};
use super::host::{Args, View};
use super::kernel::{Kernel, Variant};
use super::{Call, Tensor};
use crate::error::Result;
use crate::gpu::{Access, Buffer, Gpu, Pipeline, Shader};

/// A pipeline, once it is compiled. Locked while it is.
type Slot = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// Compiled pipelines that a runner keeps. A model there and back takes a few dozen; the whole kernel table has thousands, and a
/// driver that compiles for the processor (Mesa's llvmpipe) holds 3 to 5 MB for each as long as it lives.
const KEPT_PIPELINES: usize = 128;

/// The pipelines of a runner, each with the number of the call that took it last, and the number of calls.
#[derive(Debug, Default)]
struct Pipelines {
    slots: HashMap<(&'static str, Variant), (Slot, u64)>,
    calls: u64,
}

impl Pipelines {
    /// Drops all but the `most` that were taken last. Whoever runs one keeps it until that is done.
    fn keep(&mut self, most: usize) {
        let Some(over) = self.slots.len().checked_sub(most) else { return };
        let mut taken: Vec<u64> = self.slots.values().map(|(_, call)| *call).collect();
        taken.sort_unstable();
        let oldest = taken.get(over).copied().unwrap_or(u64::MAX);
        self.slots.retain(|_, (_, call)| *call >= oldest);
    }

    fn take(&mut self, key: (&'static str, Variant)) -> Slot {
        if self.slots.len() >= KEPT_PIPELINES && !self.slots.contains_key(&key) {
            self.keep(KEPT_PIPELINES / 2);
        }
        self.calls += 1;
        let entry = self.slots.entry(key).or_default();
        entry.1 = self.calls;
        Arc::clone(&entry.0)
    }
}

/// A GPU with the pipelines compiled on it.
#[derive(Debug)]
pub struct Runner {
    gpu: Gpu,
    pipelines: Mutex<Pipelines>,
    replaced: HashMap<String, String>,
    kept: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl Runner {
    /// A runner of the built-in kernels.
    pub fn new(gpu: Gpu) -> Self {
        Self { gpu, pipelines: Mutex::default(), replaced: HashMap::new(), kept: Mutex::default() }
    }

    /// The same, with a value of its type for the kernels to find: how products are computed, for instance.
    pub fn keeping<T: Any + Send + Sync>(self, value: T) -> Self {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(TypeId::of::<T>(), Arc::new(value));
        drop(kept);
        self
    }

    /// The value of that type that it keeps; its default, kept from now on, where it keeps none.
    pub fn kept<T: Any + Send + Sync + Default>(&self) -> Arc<T> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(T::default()) as Arc<dyn Any + Send + Sync>;
        let value = Arc::clone(kept.entry(TypeId::of::<T>()).or_insert_with(new));
        value.downcast().unwrap_or_default()
    }

    /// The same, with another WGSL text in the place of a kernel, or of a shared fragment (`shared/NAME`).
    pub fn with_source(mut self, name: &str, source: String) -> Self {
        self.replaced.insert(name.into(), source);
        self
    }

    /// Whether it runs a user's WGSL.
    pub fn foreign(&self) -> bool {
        !self.replaced.is_empty()
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Records a call. Shapes, not contents, decide its workgroups and cost.
    pub fn run(&self, call: &Call<'_>) -> Result<()> {
        let view = |tensor: &&Tensor| (tensor.dtype, tensor.shape.clone());
        let described: Vec<_> = call.tensors.iter().map(view).collect();
        let tensors = described
            .iter()
            .map(|(dtype, shape)| View { dtype: *dtype, shape, words: &[] })
            .collect();
        let args = Args { variant: &call.variant, parameters: call.parameters, tensors };
        let pipeline = self.pipeline(call.kernel, &call.variant)?;
        let buffers: Vec<&Buffer> = call.tensors.iter().map(|tensor| tensor.buffer()).collect();
        let (groups, cost) = ((call.kernel.groups)(&args), (call.kernel.cost)(&args));
        self.gpu.dispatch(&pipeline, &buffers, call.parameters, groups, cost)
    }

    /// Compiles a variant, so that its first call need not wait. Any number of threads may.
    pub fn prepare(&self, kernel: &'static Kernel, variant: &Variant) -> Result<()> {
        self.pipeline(kernel, variant).map(|_| ())
    }

    /// Compiles variants, several at a time. What does not compile says so when it is run.
    pub fn prepare_all(&self, variants: &[(&'static Kernel, Variant)]) {
        if !self.gpu.adapter().one_thread {
            variants.par_iter().for_each(|(kernel, variant)| {
                let _ = self.prepare(kernel, variant);
            });
        }
    }

    /// Drops the compiled pipelines but the `most` that were used last, and with them what the driver holds for them. A variant is
    /// compiled again when it is run again.
    pub fn keep_pipelines(&self, most: usize) {
        self.kept_pipelines().keep(most);
    }

    /// Pipelines that it keeps.
    pub fn pipelines(&self) -> usize {
        self.kept_pipelines().slots.len()
    }

    fn kept_pipelines(&self) -> MutexGuard<'_, Pipelines> {
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pipeline(&self, kernel: &'static Kernel, variant: &Variant) -> Result<Arc<Pipeline>> {
        let slot = self.kept_pipelines().take((kernel.name, variant.clone()));
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = &*slot {
            return Ok(Arc::clone(pipeline));
        }
        let source = self.replaced.get(kernel.name).map_or(kernel.source, String::as_str);
        let fragment = |name: &str| {
            let replaced = self.replaced.get(&format!("shared/{name}"));
            replaced.map(String::as_str).or_else(|| fragment(name))
        };
        let accesses: Vec<Access> = kernel.bindings.iter().map(|binding| binding.access).collect();
        let pipeline = Arc::new(self.gpu.compile(&Shader {
            kernel: kernel.name,
            variant: &variant.label(),
            source: &compose_with(kernel, source, variant, &fragment),
            bindings: &accesses,
            overrides: kernel.overrides,
            foreign: self.foreign(),
        })?);
        Ok(Arc::clone(slot.insert(pipeline)))
    }
}
