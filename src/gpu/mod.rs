//! wgpu and no maths: adapters, buffers and their budget, pipelines, recording, submits, readback, timestamps.
//!
//! Work is recorded in order and submitted in pieces that are estimated to stay under [`SUBMIT_SECONDS`]. Whatever is
//! read back is flushed first. Errors of the driver are typed; nothing here panics on them.

mod adapter;
mod buffer;
#[cfg(target_os = "linux")]
mod gles;
mod loops;
mod pipeline;
mod record;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use adapter::{
    Adapter, Capabilities, Selector, Tier, adapters, backend_name, choose, parse_backend,
    silence_drivers,
};
pub use buffer::Buffer;
pub use loops::MOST_ROUNDS;
pub use pipeline::{Access, Complaint, Pipeline, Shader, check_limits, complaint};
pub use record::{Cost, Pending, Profile, Recording, SUBMIT_SECONDS};

use crate::error::{Error, Result};
use adapter::DEVICE_TIMEOUT;

/// How a device is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The capabilities that may be used.
    pub tier: Tier,
    /// Keep wgpu's run-time checks in the shaders.
    pub checked: bool,
    /// Bytes of buffers that may be in use at once; `None`: no bound but the driver's.
    pub budget: Option<u64>,
    /// Pretend that a storage binding may be no larger than this, to try the splitting of large tensors.
    pub max_binding: Option<u64>,
    /// Pretend that a call may ask for so many operations, whatever was measured: to try the splitting of long ones, or to rule it out.
    pub max_operations: Option<f64>,
    /// What is timed on its own.
    pub profile: Timed,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tier: Tier::F16,
            checked: false,
            budget: None,
            max_binding: None,
            max_operations: None,
            profile: Timed::Submits,
        }
    }
}

/// What is timed on its own. Single dispatches make a pass each, which is slower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timed {
    /// Whole submits.
    #[default]
    Submits,
    /// Every dispatch, told by kernel.
    Kernels,
    /// Every dispatch, told by kernel and workgroups: calls of one kernel with unlike sizes stand apart.
    Sizes,
}

/// An opened device with its queue.
pub struct Gpu {
    adapter: Adapter,
    device: wgpu::Device,
    queue: wgpu::Queue,
    options: Options,
    limits: wgpu::Limits,
    capabilities: Capabilities,
    pool: Arc<buffer::Pool>,
    recorder: Mutex<record::Recorder>,
    failure: Arc<Mutex<Option<String>>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({} on {})", self.adapter.info.name, backend_name(self.adapter.info.backend))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens an adapter with the capabilities of the options' tier that it has.
    pub fn open(adapter: Adapter, options: Options) -> Result<Self> {
        let capabilities = adapter.capabilities.within(options.tier);
        let mut features = wgpu::Features::empty();
        features.set(wgpu::Features::SHADER_F16, capabilities.f16);
        features.set(wgpu::Features::SUBGROUP, capabilities.subgroups);
        features.set(wgpu::Features::TIMESTAMP_QUERY, capabilities.timestamps);
        features.set(
            wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
            capabilities.cooperative_matrix > 0,
        );
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("lopper"),
            required_features: features,
            required_limits: adapter.limits.clone(),
            experimental_features: experimental(capabilities.cooperative_matrix > 0),
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let (device, queue) =
            pollster::block_on(adapter.inner.request_device(&descriptor)).map_err(|error| {
                Error::Device { during: "opening the device".into(), reason: error.to_string() }
            })?;
        let failure = Arc::new(Mutex::new(None));
        let sink = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&sink).get_or_insert(error.to_string().replace('\n', " | "));
        }));
        let sink = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, text| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                lock(&sink).get_or_insert(format!("device lost: {text}"));
            }
        });
        let limits = device.limits();
        let pool = buffer::Pool::new(options.budget.unwrap_or(u64::MAX), limits.max_buffer_size);
        let recorder = record::Recorder::new(
            &device,
            &queue,
            capabilities,
            options.profile,
            adapter.guessed_rates(),
        );
        Ok(Self {
            adapter,
            device,
            queue,
            options,
            limits,
            capabilities,
            pool,
            recorder: Mutex::new(recorder),
            failure,
        })
    }

    /// The adapter this device was opened on.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The capabilities kernels may use on this device: the adapter's, less what the tier leaves out.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// The tier it was opened with.
    pub fn tier(&self) -> Tier {
        self.options.tier
    }

    /// The largest storage binding in bytes, a multiple of 256. Below 4 GiB on every adapter: shaders find their elements,
    /// and Metal and DX12 their bytes, with 32 bits.
    pub fn max_binding(&self) -> u64 {
        let limits = &self.limits;
        let adapter = limits
            .max_storage_buffer_binding_size
            .min(limits.max_buffer_size)
            .min(u64::from(u32::MAX));
        adapter.min(self.options.max_binding.unwrap_or(u64::MAX)) / 256 * 256
    }

    /// What the first byte of a part of a buffer is a multiple of ([`Buffer::part`]): what the adapter asks for, and whole vectors.
    pub fn part_alignment(&self) -> u64 {
        u64::from(self.limits.min_storage_buffer_offset_alignment).max(16)
    }

    /// Storage buffers that a shader may bind.
    pub fn max_bindings(&self) -> u32 {
        self.limits.max_storage_buffers_per_shader_stage
    }

    /// Bytes that new tensors may take, about: what the budget leaves, or three quarters of the adapter's memory. Where
    /// neither is known, 1 GiB.
    pub fn spare_bytes(&self) -> u64 {
        const UNKNOWN: u64 = 1 << 30;
        let used = self.memory().0;
        let limits = [self.options.budget, self.adapter.memory.map(|all| all / 4 * 3)];
        let limit = limits.into_iter().flatten().min();
        limit.map_or(UNKNOWN, |limit| limit.saturating_sub(used))
    }

    /// Bytes of tensors in use, and their peak.
    pub fn memory(&self) -> (u64, u64) {
        self.pool.usage()
    }

    /// Operations that fit a submit of [`SUBMIT_SECONDS`], by what has been measured so far; or what the options say.
    pub fn submit_cost(&self) -> Cost {
        let cost = lock(&self.recorder).submit_cost();
        let operations = self.options.max_operations.unwrap_or(cost.operations);
        Cost { operations, ..cost }
    }

    /// Device time by kernel (with [`Options::profile`]) or in all, since the device was opened.
    pub fn profile(&self) -> Result<Profile> {
        let mut recorder = lock(&self.recorder);
        recorder.submit(&self.device, &self.queue);
        recorder.collect_timestamps(&self.device, true)?;
        Ok(recorder.profile.clone())
    }

    /// Begins the profile anew.
    pub fn forget_profile(&self) -> Result<()> {
        self.profile()?;
        lock(&self.recorder).profile = Profile::default();
        Ok(())
    }

    /// Whether only some submits are timed, which is quicker: the profile then tells less than all.
    pub fn sample_times(&self, only_some: bool) {
        lock(&self.recorder).sampled = only_some;
    }

    /// A buffer of `bytes` with undefined contents.
    pub fn allocate(&self, bytes: u64, what: &str) -> Result<Buffer> {
        let limit = self.max_binding();
        if bytes > limit {
            return Err(Error::Limit {
                kernel: what.into(),
                variant: "one binding".into(),
                needs: format!("{} MiB binding", bytes.div_ceil(1 << 20)),
                has: format!("{} MiB", limit >> 20),
            });
        }
        self.pool.take(&self.device, bytes, what)
    }

    /// Copies host bytes into a buffer, in order with the recorded work.
    pub fn write(&self, buffer: &Buffer, bytes: &[u8]) -> Result<()> {
        assert!(
            bytes.len() as u64 <= buffer.bytes().next_multiple_of(4),
            "an upload fits its buffer"
        );
        // Writes through the queue happen before the next submit, so what was recorded earlier has to go first.
        let mut recorder = lock(&self.recorder);
        recorder.submit(&self.device, &self.queue);
        const CHUNK: usize = 32 << 20;
        for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
            let offset = buffer.start() + (index * CHUNK) as u64;
            let whole = chunk.len() / 4 * 4;
            self.queue.write_buffer(buffer.raw(), offset, &chunk[..whole]);
            if whole < chunk.len() {
                let mut last = [0u8; 4];
                last[..chunk.len() - whole].copy_from_slice(&chunk[whole..]);
                self.queue.write_buffer(buffer.raw(), offset + whole as u64, &last);
            }
            if bytes.len() > CHUNK {
                // Lets the driver recycle its staging memory while the next chunk is copied.
                let index = self.queue.submit([]);
                let wait = wgpu::PollType::Wait {
                    submission_index: Some(index),
                    timeout: Some(DEVICE_TIMEOUT),
                };
                self.device.poll(wait).map_err(|e| self.lost("an upload", e.to_string()))?;
            }
        }
        self.check("an upload")
    }

    /// Checks a shader against the limits and compiles it. Keep the result: compiling takes the driver milliseconds.
    pub fn compile(&self, shader: &Shader<'_>) -> Result<Pipeline> {
        let layout = lock(&self.recorder).parameter_layout().clone();
        let pipeline = pipeline::compile(&self.device, &layout, shader, self.options.checked)?;
        self.check(shader.kernel)?;
        Ok(pipeline)
    }

    /// Records one dispatch. `parameters` are the uniform bytes of group 1.
    pub fn dispatch(
        &self,
        pipeline: &Pipeline,
        buffers: &[&Buffer],
        parameters: &[u8],
        groups: glam::UVec3,
        cost: Cost,
    ) -> Result<()> {
        let limit = self.limits.max_compute_workgroups_per_dimension;
        if groups.max_element() > limit {
            return Err(Error::Limit {
                kernel: pipeline.kernel.clone(),
                variant: "dispatch".into(),
                needs: format!("{groups} workgroups"),
                has: format!("{limit} per dimension"),
            });
        }
        let group = self.pool.group(&self.device, &pipeline.storage, buffers);
        let mut recorder = lock(&self.recorder);
        recorder.dispatch(&self.device, &self.queue, pipeline, &group, parameters, groups, cost)?;
        drop(recorder);
        self.check(&pipeline.kernel)
    }

    /// Runs `run`, and takes down what it dispatches, to be dispatched again. Uploads are not part of that. Buffers that it gives
    /// back are the recording's; those that it keeps, or had before, must outlive the recording.
    pub fn record<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<(T, Recording)> {
        self.pool.begin_holding();
        lock(&self.recorder).begin_tape();
        let result = run();
        let held = self.pool.end_holding();
        let recording = lock(&self.recorder).end_tape(&self.device, held);
        Ok((result?, recording))
    }

    /// Dispatches a recording again, in order with everything else.
    pub fn replay(&self, recording: &Recording) -> Result<()> {
        lock(&self.recorder).replay(&self.device, &self.queue, recording)?;
        self.check("a recording")
    }

    /// Submits what was recorded and starts copying a buffer back; the returned value waits for it.
    pub fn read_later(&self, buffer: &Buffer) -> Result<Pending> {
        let mut recorder = lock(&self.recorder);
        let pending = recorder.read_later(&self.device, &self.queue, buffer)?;
        drop(recorder);
        self.check("a readback")?;
        Ok(pending)
    }

    /// The bytes of a buffer, after everything recorded before.
    pub fn read(&self, buffer: &Buffer) -> Result<Vec<u8>> {
        self.wait(self.read_later(buffer)?)
    }

    /// Waits for a readback.
    pub fn wait(&self, pending: Pending) -> Result<Vec<u8>> {
        let bytes = pending.wait(&self.device).map_err(|reason| self.lost("a readback", reason))?;
        self.check("a readback")?;
        Ok(bytes)
    }

    /// Submits what was recorded, without waiting.
    pub fn flush(&self) -> Result<()> {
        lock(&self.recorder).submit(&self.device, &self.queue);
        self.check("a submit")
    }

    fn lost(&self, during: &str, reason: String) -> Error {
        let reason = lock(&self.failure).clone().unwrap_or(reason);
        Error::Device { during: during.into(), reason }
    }

    fn check(&self, during: &str) -> Result<()> {
        match lock(&self.failure).clone() {
            None => Ok(()),
            Some(reason) => Err(Error::Device { during: during.into(), reason }),
        }
    }
}

#[expect(unsafe_code, reason = "wgpu marks experimental features as unsafe to enable")]
fn experimental(wanted: bool) -> wgpu::ExperimentalFeatures {
    if !wanted {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: the only experimental feature asked for is the cooperative matrix, on a device of its own that is checked
    // against the CPU reference before it is trusted.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}
