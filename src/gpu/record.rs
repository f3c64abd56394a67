//! Recording dispatches into few submits, cut by estimated time, with timestamps and asynchronous readback.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures::channel::oneshot;
use glam::UVec3;

use super::Timed;
use super::adapter::{Capabilities, DEVICE_TIMEOUT};
use super::buffer::{Buffer, Held};
use super::pipeline::Pipeline;
use crate::error::{Error, Result};

/// No submit is estimated above this: desktop systems reset a device after one or two seconds, and the screen is drawn
/// by the same device.
pub const SUBMIT_SECONDS: f64 = 0.1;

/// Dispatches in one submit at most, whatever their estimated time. Bounds the parameter buffer and the query set.
const SUBMIT_DISPATCHES: usize = 256;

/// Bytes between two calls' parameters in the parameter buffer: the largest alignment an adapter may ask for.
const PARAMETER_STRIDE: usize = 256;

/// Submits that may be under way at once. More only delays Ctrl-C and holds memory.
const IN_FLIGHT: usize = 3;

/// What a dispatch asks of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Arithmetic operations; a multiply-add counts two.
    pub operations: f64,
    /// Bytes that must move at least.
    pub bytes: f64,
}

impl Cost {
    /// So many operations and bytes.
    pub fn new(operations: f64, bytes: f64) -> Self {
        Self { operations, bytes }
    }
}

/// Device time, by kernel name or under `all`.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Seconds and dispatches by kernel; with whole-submit timing the only key is `all`.
    pub by_kernel: BTreeMap<String, (f64, u64)>,
    /// Submits made.
    pub submits: u64,
    /// Dispatches recorded.
    pub dispatches: u64,
}

impl Profile {
    /// Seconds that the device spent in kernels. 0 where it has no timestamps.
    pub fn seconds(&self) -> f64 {
        self.by_kernel.values().map(|(seconds, _)| seconds).sum()
    }
}

/// The commands recorded since the last submit, and what is needed to submit them.
pub(super) struct Recorder {
    layout: wgpu::BindGroupLayout,
    parameter_buffer: wgpu::Buffer,
    parameter_group: wgpu::BindGroup,
    parameters: Vec<u8>,
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    seconds: f64,
    rates: (f64, f64),
    slowdown: f64,
    timestamps: Option<Timestamps>,
    timed: Timed,
    /// Not every submit is timed.
    pub(super) sampled: bool,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
    /// What is dispatched is taken down here too, while something is.
    tape: Option<Vec<Taped>>,
    pub(super) profile: Profile,
}

/// A dispatch that can be made again.
#[derive(Debug)]
struct Taped {
    kernel: Arc<str>,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    parameters: Vec<u8>,
    groups: UVec3,
    seconds: f64,
}

/// Dispatches in order, with the buffers that they use: they can be made again and again, and a pass that is always the same (a
/// token of a generation) costs the processor a few calls each. What they read must have the same buffers then.
#[derive(Debug)]
pub struct Recording {
    taped: Vec<Taped>,
    /// The parameters of all.
    group: wgpu::BindGroup,
    /// Buffers that were given back while it was made, and are nobody else's while it lives.
    #[expect(dead_code, reason = "held until it is dropped")]
    held: Held,
}

impl Recording {
    /// How many dispatches it makes.
    pub fn dispatches(&self) -> usize {
        self.taped.len()
    }
}

struct Timestamps {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    period: f64,
    names: Vec<String>,
    pending: VecDeque<(Vec<String>, f64, Pending)>,
}

/// A buffer of parameters, of which a dispatch sees a slot.
fn parameter_group(
    device: &wgpu::Device,
    layout: &wgpu::BindGroupLayout,
    buffer: &wgpu::Buffer,
) -> wgpu::BindGroup {
    let size = wgpu::BufferSize::new(PARAMETER_STRIDE as u64);
    let resource = wgpu::BufferBinding { buffer, offset: 0, size };
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("parameters"),
        layout,
        entries: &[wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(resource),
        }],
    })
}

impl Recorder {
    pub(super) fn new(
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        capabilities: Capabilities,
        timed: Timed,
        rates: (f64, f64),
    ) -> Self {
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("parameters"),
            entries: &[wgpu::BindGroupLayoutEntry {
                binding: 0,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: None,
                },
                count: None,
            }],
        });
        let parameter_buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: (SUBMIT_DISPATCHES * PARAMETER_STRIDE) as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let parameter_group = parameter_group(device, &layout, &parameter_buffer);
        Self {
            layout,
            parameter_buffer,
            parameter_group,
            parameters: Vec::new(),
            encoder: None,
            pass: None,
            seconds: 0.0,
            rates,
            slowdown: 1.0,
            timestamps: capabilities.timestamps.then(|| Timestamps::new(device, queue)),
            timed,
            sampled: false,
            in_flight: VecDeque::new(),
            tape: None,
            profile: Profile::default(),
        }
    }

    /// Takes down what is dispatched from now on.
    pub(super) fn begin_tape(&mut self) {
        self.tape = Some(Vec::new());
    }

    /// What was dispatched since [`Recorder::begin_tape`].
    pub(super) fn end_tape(&mut self, device: &wgpu::Device, held: Held) -> Recording {
        let taped = self.tape.take().unwrap_or_default();
        let size = taped.len().max(1) * PARAMETER_STRIDE;
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("recorded parameters"),
            size: size as u64,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        let mut bytes = vec![0; size];
        for (taped, slot) in taped.iter().zip(bytes.chunks_exact_mut(PARAMETER_STRIDE)) {
            slot[..taped.parameters.len()].copy_from_slice(&taped.parameters);
        }
        // A buffer that was just mapped is written to without waiting; one that could not be made is told of by its use.
        if let Ok(mut view) = buffer.slice(..).get_mapped_range_mut() {
            view.copy_from_slice(&bytes);
        }
        buffer.unmap();
        let group = parameter_group(device, &self.layout, &buffer);
        Recording { taped, group, held }
    }

    /// Dispatches a recording once more.
    pub(super) fn replay(
        &mut self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        recording: &Recording,
    ) -> Result<()> {
        for (index, taped) in recording.taped.iter().enumerate() {
            let full = self.timestamps.as_ref().is_some_and(|t| t.names.len() >= SUBMIT_DISPATCHES);
            if full || (self.seconds > 0.0 && self.seconds + taped.seconds > SUBMIT_SECONDS) {
                self.submit(device, queue);
                self.throttle(device)?;
            }
            self.seconds += taped.seconds;
            self.pass_for(device, &taped.kernel, taped.groups);
            let pass = self.pass.as_mut().expect("a pass was begun");
            pass.set_pipeline(&taped.pipeline);
            pass.set_bind_group(0, &taped.group, &[]);
            pass.set_bind_group(1, &recording.group, &[(index * PARAMETER_STRIDE) as u32]);
            pass.dispatch_workgroups(taped.groups.x, taped.groups.y, taped.groups.z);
        }
        self.profile.dispatches += recording.taped.len() as u64;
        Ok(())
    }

    pub(super) fn parameter_layout(&self) -> &wgpu::BindGroupLayout {
        &self.layout
    }

    pub(super) fn submit_cost(&self) -> Cost {
        let seconds = SUBMIT_SECONDS / self.slowdown;
        Cost { operations: self.rates.0 * seconds, bytes: self.rates.1 * seconds }
    }

    fn estimate(&self, cost: Cost) -> f64 {
        // 2 microseconds: what a chained dispatch costs on the device, whatever it does.
        2e-6 + (cost.operations / self.rates.0).max(cost.bytes / self.rates.1) * self.slowdown
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one dispatch is all of this; a struct would only name it twice"
    )]
    pub(super) fn dispatch(
        &mut self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        pipeline: &Pipeline,
        group: &wgpu::BindGroup,
        parameters: &[u8],
        groups: UVec3,
        cost: Cost,
    ) -> Result<()> {
        assert!(
            parameters.len() <= PARAMETER_STRIDE,
            "parameters of {} fit their slot",
            pipeline.kernel
        );
        let seconds = self.estimate(cost);
        let full = self.parameters.len() >= SUBMIT_DISPATCHES * PARAMETER_STRIDE;
        if full || (self.seconds > 0.0 && self.seconds + seconds > SUBMIT_SECONDS) {
            self.submit(device, queue);
            self.throttle(device)?;
        }
        self.seconds += seconds;
        if let Some(tape) = &mut self.tape {
            tape.push(Taped {
                kernel: pipeline.kernel.as_str().into(),
                pipeline: pipeline.pipeline.clone(),
                group: group.clone(),
                parameters: parameters.to_vec(),
                groups,
                seconds,
            });
        }
        let offset = self.parameters.len();
        self.parameters.extend_from_slice(parameters);
        self.parameters.resize(offset + PARAMETER_STRIDE, 0);
        self.pass_for(device, &pipeline.kernel, groups);
        let pass = self.pass.as_mut().expect("a pass was begun");
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, group, &[]);
        pass.set_bind_group(1, &self.parameter_group, &[offset as u32]);
        pass.dispatch_workgroups(groups.x, groups.y, groups.z);
        self.profile.dispatches += 1;
        Ok(())
    }

    /// Makes sure of a pass for a dispatch: its own where each is timed.
    fn pass_for(&mut self, device: &wgpu::Device, kernel: &str, groups: UVec3) {
        match self.timed {
            Timed::Submits if self.pass.is_some() => {}
            Timed::Submits => self.begin_pass(device, "all"),
            Timed::Kernels => self.begin_pass(device, kernel),
            Timed::Sizes => {
                self.begin_pass(device, &format!("{kernel} {}", groups.x * groups.y * groups.z))
            }
        }
    }

    fn begin_pass(&mut self, device: &wgpu::Device, name: &str) {
        self.pass = None;
        let encoder =
            self.encoder.get_or_insert_with(|| device.create_command_encoder(&Default::default()));
        // The first submits teach how long work takes; later ones are checked now and then.
        let timed =
            !self.sampled || self.profile.submits < 16 || self.profile.submits.is_multiple_of(16);
        let timestamps = self.timestamps.as_mut().filter(|_| timed);
        let timestamp_writes = timestamps.map(|timestamps| {
            let first = 2 * timestamps.names.len() as u32;
            timestamps.names.push(name.to_string());
            wgpu::ComputePassTimestampWrites {
                query_set: &timestamps.queries,
                beginning_of_pass_write_index: Some(first),
                end_of_pass_write_index: Some(first + 1),
            }
        });
        let descriptor = wgpu::ComputePassDescriptor { label: Some(name), timestamp_writes };
        self.pass = Some(encoder.begin_compute_pass(&descriptor).forget_lifetime());
    }

    /// Submits what was recorded; nothing if nothing was.
    pub(super) fn submit(&mut self, device: &wgpu::Device, queue: &wgpu::Queue) {
        self.pass = None;
        let Some(mut encoder) = self.encoder.take() else {
            return;
        };
        let names = match &mut self.timestamps {
            Some(timestamps) => timestamps.resolve(&mut encoder),
            None => Vec::new(),
        };
        queue.write_buffer(&self.parameter_buffer, 0, &self.parameters);
        self.in_flight.push_back(queue.submit([encoder.finish()]));
        if let (Some(timestamps), false) = (&mut self.timestamps, names.is_empty()) {
            let bytes = 16 * names.len() as u64;
            let pending = Pending::start(device, queue, (&timestamps.resolved, 0), bytes);
            timestamps.pending.push_back((names, self.seconds, pending));
        }
        self.parameters.clear();
        self.seconds = 0.0;
        self.profile.submits += 1;
    }

    /// Waits until no more than [`IN_FLIGHT`] submits are under way, and learns from the finished ones' times.
    fn throttle(&mut self, device: &wgpu::Device) -> Result<()> {
        while self.in_flight.len() > IN_FLIGHT {
            let index = self.in_flight.pop_front();
            let wait =
                wgpu::PollType::Wait { submission_index: index, timeout: Some(DEVICE_TIMEOUT) };
            device.poll(wait).map_err(|e| Error::Device {
                during: "waiting for a submit".into(),
                reason: e.to_string(),
            })?;
        }
        self.collect_timestamps(device, false)
    }

    /// Adds finished submits' device times to the profile; with `all`, waits for those still under way.
    pub(super) fn collect_timestamps(&mut self, device: &wgpu::Device, all: bool) -> Result<()> {
        let Some(timestamps) = &mut self.timestamps else {
            return Ok(());
        };
        while let Some((_, _, pending)) = timestamps.pending.front_mut() {
            if !all && !pending.is_ready() {
                return Ok(());
            }
            let Some((names, estimated, pending)) = timestamps.pending.pop_front() else {
                return Ok(());
            };
            let bytes = pending
                .wait(device)
                .map_err(|reason| Error::Device { during: "reading timestamps".into(), reason })?;
            let ticks: Vec<u64> = bytes
                .chunks_exact(8)
                .map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")))
                .collect();
            let mut measured = 0.0;
            for (name, pair) in names.into_iter().zip(ticks.chunks_exact(2)) {
                let seconds = pair[1].saturating_sub(pair[0]) as f64 * timestamps.period * 1e-9;
                measured += seconds;
                let entry = self.profile.by_kernel.entry(name).or_default();
                *entry = (entry.0 + seconds, entry.1 + 1);
            }
            if measured > 0.0 && estimated > 1e-4 {
                let correction = (measured / estimated).clamp(0.25, 4.0);
                self.slowdown = (self.slowdown * correction.sqrt()).clamp(1e-3, 1e3);
            }
        }
        Ok(())
    }

    pub(super) fn read_later(
        &mut self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        buffer: &Buffer,
    ) -> Result<Pending> {
        self.submit(device, queue);
        // Work that is read back before a submit is full would otherwise never be measured, and its timestamps pile up.
        self.throttle(device)?;
        let source = (buffer.raw(), buffer.start());
        Ok(Pending::start(device, queue, source, buffer.bytes()))
    }
}

impl Timestamps {
    fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let count = 2 * SUBMIT_DISPATCHES as u32;
        let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: 8 * u64::from(count),
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let period = f64::from(queue.get_timestamp_period());
        Self { queries, resolved, period, names: Vec::new(), pending: VecDeque::new() }
    }

    fn resolve(&mut self, encoder: &mut wgpu::CommandEncoder) -> Vec<String> {
        let names = std::mem::take(&mut self.names);
        if !names.is_empty() {
            encoder.resolve_query_set(&self.queries, 0..2 * names.len() as u32, &self.resolved, 0);
        }
        names
    }
}

/// A readback under way.
#[derive(Debug)]
pub struct Pending {
    staging: wgpu::Buffer,
    bytes: u64,
    submission: wgpu::SubmissionIndex,
    mapped: oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
    ready: Option<Result<(), wgpu::BufferAsyncError>>,
}

impl Pending {
    fn start(
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        (source, start): (&wgpu::Buffer, u64),
        bytes: u64,
    ) -> Self {
        let size = bytes.max(4).next_multiple_of(4);
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(source, start, &staging, 0, size);
        let submission = queue.submit([encoder.finish()]);
        let (send, mapped) = oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone when nobody waits any more; that is no error.
            let _ = send.send(result);
        });
        Self { staging, bytes, submission, mapped, ready: None }
    }

    fn is_ready(&mut self) -> bool {
        if self.ready.is_none() {
            self.ready = self.mapped.try_recv().unwrap_or(None);
        }
        self.ready.is_some()
    }

    pub(super) fn wait(mut self, device: &wgpu::Device) -> Result<Vec<u8>, String> {
        if !self.is_ready() {
            let index = Some(self.submission.clone());
            let wait =
                wgpu::PollType::Wait { submission_index: index, timeout: Some(DEVICE_TIMEOUT) };
            device.poll(wait).map_err(|error| error.to_string())?;
        }
        let result = match self.ready.take() {
            Some(result) => result,
            None => pollster::block_on(self.mapped).map_err(|error| error.to_string())?,
        };
        result.map_err(|error| error.to_string())?;
        let view = self.staging.slice(..).get_mapped_range().map_err(|error| error.to_string())?;
        Ok(view[..self.bytes as usize].to_vec())
    }
}
