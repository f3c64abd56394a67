//! Finding adapters, choosing one, and probing what it can do.
//!
//! Capabilities are independent bits (an adapter may have subgroups and no f16); a tier is only a name for a set of them.

use std::time::Duration;

use crate::error::{Error, Result};

/// What a kernel variant may ask of an adapter. Every bit is probed on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// `enable f16;`: storage and arithmetic in f16.
    pub f16: bool,
    /// Subgroup operations. Their width varies by adapter and even by pipeline; only variants that name a `SUBGROUP` take
    /// it for a constant.
    pub subgroups: bool,
    /// Lanes of a subgroup where that is the same for every pipeline; 0 where it varies.
    pub subgroup_size: u32,
    /// Packed integer dot products in shaders: every adapter has them, natively or not. The CPU device multiplies in floats.
    pub integer_dot: bool,
    /// A processor that plays a GPU: few cores to fill.
    pub processor: bool,
    /// Timestamps around compute passes.
    pub timestamps: bool,
    /// Edge of the f16 cooperative matrices with f32 accumulation, 16 or 8; 0: it has none. Recorded here; opened as a
    /// device of its own.
    pub cooperative_matrix: u32,
}

impl Capabilities {
    /// Those that a device of a tier may use.
    pub fn within(mut self, tier: Tier) -> Self {
        if tier != Tier::Coop {
            self.cooperative_matrix = 0;
        }
        if tier == Tier::Baseline {
            (self.f16, self.subgroups) = (false, false);
        }
        self
    }
}

/// A named set of capabilities that a device is opened with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// No f16, no subgroups: runs everywhere.
    Baseline,
    /// f16 and subgroups, where the adapter has them.
    #[default]
    F16,
    /// Cooperative matrices. They change the memory model of every shader on their device.
    Coop,
}

impl Tier {
    /// The name in the command contract.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Baseline => "baseline",
            Tier::F16 => "f16",
            Tier::Coop => "coop",
        }
    }
}

/// Which adapter is wanted. Empty fields take anything.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// Part of the adapter's name, in any case; behind it `#2` for the second of those that match, and so on.
    pub name: Option<String>,
    /// One backend only.
    pub backend: Option<wgpu::Backend>,
}

impl Selector {
    /// The selector with empty fields filled from `WGPU_ADAPTER_NAME` and `WGPU_BACKEND`.
    pub fn or_environment(self) -> Result<Self> {
        let name = self.name.or_else(|| std::env::var("WGPU_ADAPTER_NAME").ok());
        let backend = match (self.backend, std::env::var("WGPU_BACKEND").ok()) {
            (Some(backend), _) => Some(backend),
            (None, Some(text)) => Some(parse_backend(&text)?),
            (None, None) => None,
        };
        Ok(Self { name, backend })
    }

    /// Part of a name in lower case, and the number of one of those that match, from 1.
    fn parts(&self) -> (Option<String>, Option<usize>) {
        let Some(name) = self.name.as_ref().map(|name| name.to_lowercase()) else {
            return (None, None);
        };
        let number = name.rsplit_once('#').and_then(|(name, number)| {
            let number: usize = number.parse().ok().filter(|number| *number > 0)?;
            Some((name.to_string(), number))
        });
        match number {
            Some((name, number)) => (Some(name), Some(number)),
            None => (Some(name), None),
        }
    }

    fn describe(&self) -> String {
        let name = self.name.as_ref().map(|n| format!("with a name containing `{n}`"));
        let backend = self.backend.map(|b| format!("of backend {}", backend_name(b)));
        let parts: Vec<_> = name.into_iter().chain(backend).collect();
        if parts.is_empty() { "of any kind".into() } else { parts.join(" ") }
    }
}

/// The backend of that name: `vulkan`, `metal`, `dx12` or `gl`.
pub fn parse_backend(text: &str) -> Result<wgpu::Backend> {
    match text.to_ascii_lowercase().as_str() {
        "vulkan" | "vk" => Ok(wgpu::Backend::Vulkan),
        "metal" | "mtl" => Ok(wgpu::Backend::Metal),
        "dx12" | "d3d12" => Ok(wgpu::Backend::Dx12),
        "gl" | "gles" | "opengl" => Ok(wgpu::Backend::Gl),
        _ => Err(Error::Argument {
            argument: "--backend / WGPU_BACKEND".into(),
            expected: "vulkan, metal, dx12 or gl".into(),
            found: text.into(),
        }),
    }
}

/// The backend's name in the command contract.
pub fn backend_name(backend: wgpu::Backend) -> &'static str {
    match backend {
        wgpu::Backend::Vulkan => "vulkan",
        wgpu::Backend::Metal => "metal",
        wgpu::Backend::Dx12 => "dx12",
        wgpu::Backend::Gl => "gl",
        wgpu::Backend::BrowserWebGpu => "webgpu",
        wgpu::Backend::Noop => "noop",
    }
}

/// The largest of the heaps that are an adapter's own, under Vulkan.
#[expect(unsafe_code, reason = "wgpu marks the handles behind it as unsafe to use")]
#[cfg(not(any(target_vendor = "apple", target_family = "wasm")))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the handles live as long as the guard, and nothing is done with them but to ask.
    let properties = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let types = properties.memory_types_as_slice().iter();
    let own = types.filter(|of| {
        let local = of.property_flags.as_raw() & DEVICE_LOCAL;
        local != 0
    });
    own.map(|of| properties.memory_heaps[of.heap_index as usize].size).max()
}

#[cfg(any(target_vendor = "apple", target_family = "wasm"))]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT.
const DEVICE_LOCAL: u32 = 1;

/// An adapter of this machine.
pub struct Adapter {
    pub(super) inner: wgpu::Adapter,
    // Some GL drivers unload with their instance; it stays as long as the adapter does.
    _instance: wgpu::Instance,
    /// Name, driver, type.
    pub info: wgpu::AdapterInfo,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Its limits.
    pub limits: wgpu::Limits,
    /// The cooperative-matrix shapes it lists, as text: `16x16x16 F16->F32`.
    pub cooperative: Vec<String>,
    /// It may be used by the thread that found it only.
    pub one_thread: bool,
    /// Bytes of its own memory, where the backend tells.
    pub memory: Option<u64>,
}

impl Adapter {
    fn new(inner: wgpu::Adapter, instance: &wgpu::Instance, one_thread: bool) -> Self {
        let (info, features) = (inner.get_info(), inner.features());
        let shapes = inner.cooperative_matrix_properties();
        let usable = |p: &&wgpu::CooperativeMatrixProperties| {
            p.m_size == p.n_size
                && p.n_size == p.k_size
                && [8, 16].contains(&p.m_size)
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        };
        let edges = shapes.iter().filter(usable).map(|shape| shape.m_size);
        let edge = if features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            edges.max().unwrap_or(0)
        } else {
            0
        };
        let capabilities = Capabilities {
            f16: features.contains(wgpu::Features::SHADER_F16),
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            subgroup_size: if info.subgroup_min_size == info.subgroup_max_size {
                info.subgroup_max_size
            } else {
                0
            },
            integer_dot: true,
            processor: info.device_type == wgpu::DeviceType::Cpu,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            cooperative_matrix: edge,
        };
        let text = |p: &wgpu::CooperativeMatrixProperties| {
            format!("{}x{}x{} {:?}->{:?}", p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type)
        };
        let cooperative = shapes.iter().map(text).collect();
        let limits = inner.limits();
        Self {
            memory: memory(&inner),
            inner,
            _instance: instance.clone(),
            info,
            capabilities,
            limits,
            cooperative,
            one_thread,
        }
    }

    /// The highest tier whose capabilities the adapter has.
    pub fn tier(&self) -> Tier {
        match self.capabilities {
            Capabilities { cooperative_matrix: 1.., f16: true, .. } => Tier::Coop,
            Capabilities { f16: true, subgroups: true, .. } => Tier::F16,
            _ => Tier::Baseline,
        }
    }

    /// Driver name and version as one text.
    pub fn driver(&self) -> String {
        format!("{} {}", self.info.driver, self.info.driver_info).trim().to_string()
    }

    /// `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub fn type_name(&self) -> &'static str {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "cpu",
            wgpu::DeviceType::Other => "other",
        }
    }

    /// A first guess of what the adapter does in a second, (operations, bytes), from its type alone. Deliberately low:
    /// too short a submit costs microseconds, too long a one costs the device. Measured submits correct it.
    pub(super) fn guessed_rates(&self) -> (f64, f64) {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => (1e12, 1e11),
            wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::VirtualGpu => (1e11, 1e10),
            wgpu::DeviceType::Cpu | wgpu::DeviceType::Other => (2e9, 2e9),
        }
    }

    /// Workgroups that keep it busy, from its type alone: four on each multiprocessor of a large one. With more than that a
    /// smaller one runs them one after the other.
    pub fn enough_workgroups(&self) -> usize {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => 512,
            wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::VirtualGpu => 64,
            wgpu::DeviceType::Cpu | wgpu::DeviceType::Other => 8,
        }
    }
}

/// Keeps graphics libraries from writing to standard error themselves: that there is no display is nothing to a user of compute
/// shaders. What the user has set stays. To be called while the process has one thread.
#[expect(unsafe_code, reason = "the environment is the only way to tell these libraries")]
pub fn silence_drivers() {
    let display = std::env::var_os("XDG_RUNTIME_DIR");
    let absolute = display.is_some_and(|path| std::path::Path::new(&path).is_absolute());
    // libwayland complains of none, and of one that is not absolute; one without a display in it is none to it.
    let display = (!absolute).then_some(("XDG_RUNTIME_DIR", "/nonexistent"));
    let silent = [("EGL_LOG_LEVEL", "fatal"), ("MESA_LOG", "null"), ("LIBGL_DEBUG", "quiet")];
    let unset = silent.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
    for (name, value) in unset.chain(display) {
        // SAFETY: no other thread runs that could read the environment meanwhile.
        unsafe { std::env::set_var(name, value) };
    }
}

const NATIVE: wgpu::Backends =
    wgpu::Backends::VULKAN.union(wgpu::Backends::METAL).union(wgpu::Backends::DX12);

/// All adapters of the machine that match, best first: real GPUs before software, Vulkan, Metal and DX12 before GL.
pub fn adapters(selector: &Selector) -> Vec<Adapter> {
    let all = NATIVE.union(wgpu::Backends::GL);
    adapters_of(selector.backend.map_or(all, wgpu::Backends::from), selector)
}

/// Whether naga's GLSL has compute shaders in the adapter's version: OpenGL from 4.3, OpenGL ES from 3.1. (A driver of OpenGL
/// 3.3 may have the extension; the shading language that wgpu then writes has not.)
fn computes(adapter: &wgpu::Adapter) -> bool {
    let info = adapter.get_info();
    let desktop = |text: &str| {
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        let mut part = || parts.next().and_then(|part| part.parse::<u32>().ok());
        part().zip(part())
    };
    let flags = adapter.get_downlevel_capabilities().flags;
    let version = desktop(&info.driver_info).unwrap_or((u32::MAX, 0));
    flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
        && (info.backend != wgpu::Backend::Gl || version >= (4, 3))
}

fn adapters_of(backends: wgpu::Backends, selector: &Selector) -> Vec<Adapter> {
    let descriptor = wgpu::InstanceDescriptor {
        backends,
        // No dispatch here is indirect, and what wgpu compiles to check them costs every device some time.
        flags: wgpu::InstanceFlags::default() - wgpu::InstanceFlags::VALIDATION_INDIRECT_CALL,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let instance = wgpu::Instance::new(descriptor);
    let (wanted, number) = selector.parts();
    let (listed, without): (Vec<_>, Vec<_>) =
        pollster::block_on(instance.enumerate_adapters(backends)).into_iter().partition(computes);
    let mut listed: Vec<(wgpu::Adapter, bool)> =
        listed.into_iter().map(|adapter| (adapter, false)).collect();
    if without.iter().any(|a| a.get_info().backend == wgpu::Backend::Gl) {
        // Two contexts must not take turns on this thread.
        drop(without);
        listed.extend(gles(&instance).map(|adapter| (adapter, true)));
    }
    let mut found: Vec<Adapter> = listed
        .into_iter()
        .map(|(adapter, one_thread)| Adapter::new(adapter, &instance, one_thread))
        .filter(|a| wanted.as_ref().is_none_or(|name| a.info.name.to_lowercase().contains(name)))
        .collect();
    let rank = |adapter: &Adapter| {
        let kind = match adapter.info.device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        (kind, adapter.info.backend == wgpu::Backend::Gl)
    };
    found.sort_by_key(rank);
    match number {
        Some(number) => found.into_iter().skip(number - 1).take(1).collect(),
        None => found,
    }
}

#[cfg(target_os = "linux")]
use super::gles::adapter as gles;

/// Contexts of our own are made through EGL only.
#[cfg(not(target_os = "linux"))]
fn gles(_instance: &wgpu::Instance) -> Option<wgpu::Adapter> {
    None
}

/// The best adapter that matches, or the reason there is none.
pub fn choose(selector: &Selector) -> Result<Adapter> {
    // GL only where nothing else is: asking it starts a display library, which may complain on a machine without one.
    let native = match selector.backend {
        None => adapters_of(NATIVE, selector),
        Some(_) => Vec::new(),
    };
    let found = native.into_iter().next().or_else(|| adapters(selector).into_iter().next());
    found.ok_or_else(|| {
        let all = adapters(&Selector::default());
        let found = if all.is_empty() {
            "none is installed (on Debian `apt-get install mesa-vulkan-drivers` gives a software one; or use --device cpu)"
                .to_string()
        } else {
            let names: Vec<_> =
                all.iter().map(|a| format!("{} ({})", a.info.name, backend_name(a.info.backend))).collect();
            format!("this machine has {}", names.join(", "))
        };
        Error::NoAdapter { wanted: selector.describe(), found }
    })
}

/// How long a wait for the device may take before it counts as lost.
pub(super) const DEVICE_TIMEOUT: Duration = Duration::from_secs(120);
