//! Buffers counted against a budget, reused through a pool, and staged uploads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::adapter::DEVICE_TIMEOUT;
use crate::error::{Error, Result};

/// Bytes are rounded up to this before allocation, so that buffers of nearly equal size can take each other's place.
const GRANULE: u64 = 256;

/// What has been allocated, and the free buffers kept for reuse.
#[derive(Debug)]
pub(super) struct Pool {
    state: Mutex<PoolState>,
    budget: u64,
    /// The largest buffer that the device makes.
    limit: u64,
}

/// A layout, and the buffers bound to it with the first byte and the number of bytes that kernels see.
type GroupKey = (wgpu::BindGroupLayout, Vec<(wgpu::Buffer, u64, u64)>);

/// Bind groups that are kept. A pass over a model binds the same buffers again and again, for the pool hands them out in the
/// same order.
const KEPT_GROUPS: usize = 4096;

#[derive(Debug, Default)]
struct PoolState {
    used: u64,
    peak: u64,
    idle: u64,
    free: HashMap<u64, Vec<wgpu::Buffer>>,
    /// While a recording is made: what was given back since, of each size. It is in use until the recording goes.
    held: Option<HashMap<u64, Vec<wgpu::Buffer>>>,
    groups: HashMap<GroupKey, wgpu::BindGroup>,
}

/// Buffers that a recording uses between its own dispatches. They go back to the pool with it.
#[derive(Debug)]
pub(super) struct Held {
    buffers: HashMap<u64, Vec<wgpu::Buffer>>,
    pool: Arc<Pool>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        for (size, mut buffers) in self.buffers.drain() {
            let bytes = size * buffers.len() as u64;
            state.used -= bytes;
            state.idle += bytes;
            state.free.entry(size).or_default().append(&mut buffers);
        }
    }
}

impl PoolState {
    /// Gives up the buffers kept for reuse, and the bind groups, which hold them.
    fn empty(&mut self) {
        self.free.clear();
        self.groups.clear();
        self.idle = 0;
    }
}

/// Usages of every tensor buffer.
const TENSOR_USAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

impl Pool {
    pub(super) fn new(budget: u64, limit: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), budget, limit })
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        // Counters stay consistent even if a thread panicked while holding them: every update is one addition.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps buffers that are given back from now on for [`Pool::end_holding`]; who asks for one meanwhile gets those first.
    pub(super) fn begin_holding(&self) {
        self.lock().held = Some(HashMap::new());
    }

    /// The buffers that were given back since.
    pub(super) fn end_holding(self: &Arc<Self>) -> Held {
        let buffers = self.lock().held.take().unwrap_or_default();
        Held { buffers, pool: Arc::clone(self) }
    }

    /// Bytes in use now and the most there ever were.
    pub(super) fn usage(&self) -> (u64, u64) {
        let state = self.lock();
        (state.used, state.peak)
    }

    /// A bind group of buffers in order.
    pub(super) fn group(
        &self,
        device: &wgpu::Device,
        layout: &wgpu::BindGroupLayout,
        buffers: &[&Buffer],
    ) -> wgpu::BindGroup {
        let bound = |buffer: &&Buffer| (buffer.raw().clone(), buffer.start, buffer.bytes);
        let key = (layout.clone(), buffers.iter().map(bound).collect());
        let mut state = self.lock();
        if let Some(group) = state.groups.get(&key) {
            return group.clone();
        }
        let entries: Vec<_> = (0u32..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.binding() })
            .collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        });
        if state.groups.len() >= KEPT_GROUPS {
            state.groups.clear();
        }
        state.groups.insert(key, group.clone());
        group
    }

    /// A buffer of at least `bytes`. Work already recorded may still use a reused buffer's old contents: the queue runs
    /// in order, so that is no race.
    pub(super) fn take(
        self: &Arc<Self>,
        device: &wgpu::Device,
        bytes: u64,
        what: &str,
    ) -> Result<Buffer> {
        let size = bytes.max(4).next_multiple_of(GRANULE);
        let limit = self.limit;
        let refuse = |used: u64| Error::OutOfMemory {
            what: what.to_string(),
            bytes,
            used,
            budget: self.budget,
        };
        if size > limit {
            return Err(Error::OutOfMemory {
                what: what.to_string(),
                bytes,
                used: 0,
                budget: limit,
            });
        }
        let reused = {
            let mut state = self.lock();
            let held = state.held.as_mut().and_then(|held| held.get_mut(&size)?.pop());
            if let Some(inner) = held {
                return Ok(Buffer::whole(inner, bytes, size, self));
            }
            if state.used + size > self.budget {
                return Err(refuse(state.used));
            }
            if state.used + state.idle + size > self.budget {
                state.empty();
            }
            let reused = state.free.get_mut(&size).and_then(Vec::pop);
            state.idle -= if reused.is_some() { size } else { 0 };
            state.used += size;
            state.peak = state.peak.max(state.used);
            reused
        };
        let inner = match reused {
            Some(buffer) => buffer,
            None => create(device, size)
                .or_else(|_| {
                    // Memory that only stands ready for reuse goes back to the driver once its work is done; then once more.
                    self.lock().empty();
                    let wait = wgpu::PollType::Wait {
                        submission_index: None,
                        timeout: Some(DEVICE_TIMEOUT),
                    };
                    // A device that is lost fails the second attempt too.
                    let _ = device.poll(wait);
                    create(device, size)
                })
                .map_err(|_| {
                    let mut state = self.lock();
                    state.used -= size;
                    refuse(state.used)
                })?,
        };
        Ok(Buffer::whole(inner, bytes, size, self))
    }
}

fn create(device: &wgpu::Device, size: u64) -> Result<wgpu::Buffer, wgpu::Error> {
    let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let descriptor = wgpu::BufferDescriptor {
        label: None,
        size,
        usage: TENSOR_USAGE,
        mapped_at_creation: false,
    };
    let buffer = device.create_buffer(&descriptor);
    match pollster::block_on(scope.pop()) {
        None => Ok(buffer),
        Some(error) => Err(error),
    }
}

/// An allocation that returns to its pool when dropped.
#[derive(Debug)]
struct Allocation {
    inner: Option<wgpu::Buffer>,
    size: u64,
    pool: Arc<Pool>,
}

/// A storage buffer: an allocation, or a part of one that others have parts of too. The allocation returns to its pool with the
/// last of them.
#[derive(Debug)]
pub struct Buffer {
    allocation: Arc<Allocation>,
    /// Its first byte in the allocation.
    start: u64,
    bytes: u64,
}

impl Buffer {
    fn whole(inner: wgpu::Buffer, bytes: u64, size: u64, pool: &Arc<Pool>) -> Self {
        let allocation = Allocation { inner: Some(inner), size, pool: Arc::clone(pool) };
        Self { allocation: Arc::new(allocation), start: 0, bytes }
    }

    /// Bytes asked for; the allocation may be larger.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// `bytes` of it from `start` on. It can be bound where the allocation's byte there is a multiple of what the adapter asks for.
    pub fn part(&self, start: u64, bytes: u64) -> Self {
        assert!(start + bytes <= self.bytes, "a part lies within its buffer");
        Self { allocation: Arc::clone(&self.allocation), start: self.start + start, bytes }
    }

    /// This buffer and the one behind it as one; `None` where that one does not begin in the same allocation where this ends.
    pub fn with(&self, next: &Buffer) -> Option<Self> {
        let follows = Arc::ptr_eq(&self.allocation, &next.allocation)
            && self.start + self.bytes == next.start;
        let allocation = Arc::clone(&self.allocation);
        follows.then(|| Self { allocation, start: self.start, bytes: self.bytes + next.bytes })
    }

    pub(super) fn raw(&self) -> &wgpu::Buffer {
        let inner = self.allocation.inner.as_ref();
        inner.expect("an allocation is held until it is dropped")
    }

    /// Its first byte in what [`Buffer::raw`] gives.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// The part that kernels see: what was asked for, rounded up to a vector of four words.
    fn binding(&self) -> wgpu::BindingResource<'_> {
        let size = wgpu::BufferSize::new(self.bytes.max(4).next_multiple_of(16));
        let (buffer, offset) = (self.raw(), self.start);
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(buffer) = self.inner.take() {
            let mut state = self.pool.lock();
            if let Some(held) = &mut state.held {
                held.entry(self.size).or_default().push(buffer);
                return;
            }
            state.used -= self.size;
            state.idle += self.size;
            state.free.entry(self.size).or_default().push(buffer);
        }
    }
}
