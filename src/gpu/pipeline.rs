//! Compiling a composed WGSL source into a pipeline, after checking it against the adapter's limits in the host.
//!
//! A driver's compiler never sees a pipeline that asks for more than the adapter has: an oversized workgroup array has
//! been seen to hang one for minutes.

use crate::error::{Error, Result};

/// How a kernel uses a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read only.
    Read,
    /// Every element is written; what was there before does not matter.
    Write,
    /// Read and written, or written in part: what is not written stays.
    ReadWrite,
}

/// A shader ready to be compiled.
#[derive(Clone, Debug)]
pub struct Shader<'a> {
    /// The kernel's name, for messages.
    pub kernel: &'a str,
    /// The variant's label, for messages.
    pub variant: &'a str,
    /// The whole WGSL text. Entry point `main`; storage in group 0, parameters in group 1.
    pub source: &'a str,
    /// The storage bindings in order.
    pub bindings: &'a [Access],
    /// Values of the `override` constants.
    pub overrides: &'a [(&'a str, f64)],
    /// Whether it is a user's, whose loops may not end: with checks on they are [bounded](super::loops).
    pub foreign: bool,
}

/// A compiled kernel variant.
#[derive(Debug)]
pub struct Pipeline {
    pub(super) kernel: String,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) storage: wgpu::BindGroupLayout,
}

/// Parses and validates a shader and checks what it asks for against the limits. Returns the module.
pub fn check_limits(shader: &Shader<'_>, limits: &wgpu::Limits) -> Result<naga::Module> {
    let module = naga::front::wgsl::parse_str(shader.source).map_err(|error| Error::Malformed {
        path: format!("shaders/{}.wgsl [{}]", shader.kernel, shader.variant).into(),
        what: "WGSL".into(),
        offset: None,
        expected: "a shader that parses".into(),
        found: error.emit_to_string(shader.source).trim().replace('\n', " | "),
    })?;
    let needs = resources(shader, &module)?;
    let limit = |what: &str, needs: u64, has: u64| {
        if needs <= has {
            return Ok(());
        }
        Err(Error::Limit {
            kernel: shader.kernel.into(),
            variant: shader.variant.into(),
            needs: format!("{needs} {what}"),
            has: format!("{has}"),
        })
    };
    limit(
        "bytes of workgroup storage",
        needs.workgroup_bytes,
        limits.max_compute_workgroup_storage_size.into(),
    )?;
    limit(
        "invocations per workgroup",
        needs.invocations,
        limits.max_compute_invocations_per_workgroup.into(),
    )?;
    limit(
        "storage buffers",
        shader.bindings.len() as u64,
        limits.max_storage_buffers_per_shader_stage.into(),
    )?;
    Ok(module)
}

/// What is wrong with a WGSL text: the first complaint of the parser, or of the validator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Line of the text and column in it, from 1, where the text has a place that is at fault.
    pub place: Option<(u32, u32)>,
    /// In words, on one line.
    pub reason: String,
}

/// Parses and validates a text. `None` if nothing is wrong with it.
pub fn complaint(source: &str) -> Option<Complaint> {
    let at = |location: Option<naga::SourceLocation>| {
        location.map(|place| (place.line_number, place.line_position))
    };
    let module = match naga::front::wgsl::parse_str(source) {
        Ok(module) => module,
        Err(error) => {
            let reason = error.message().replace('\n', " ");
            return Some(Complaint { place: at(error.location(source)), reason });
        }
    };
    let mut validator = naga::valid::Validator::new(
        naga::valid::ValidationFlags::all(),
        naga::valid::Capabilities::all(),
    );
    let error = validator.validate(&module).err()?;
    let mut reason = error.as_inner().to_string();
    let mut cause = std::error::Error::source(error.as_inner());
    while let Some(next) = cause {
        reason = format!("{reason}: {next}");
        cause = next.source();
    }
    Some(Complaint { place: at(error.location(source)), reason: reason.replace('\n', " ") })
}

struct Resources {
    workgroup_bytes: u64,
    invocations: u64,
}

fn resources(shader: &Shader<'_>, module: &naga::Module) -> Result<Resources> {
    let broken = |what: &str, found: String| Error::Malformed {
        path: format!("shaders/{}.wgsl [{}]", shader.kernel, shader.variant).into(),
        what: what.into(),
        offset: None,
        expected: "a valid compute shader".into(),
        found: found.replace('\n', " | "),
    };
    let mut validator = naga::valid::Validator::new(
        naga::valid::ValidationFlags::all(),
        naga::valid::Capabilities::all(),
    );
    let info =
        validator.validate(module).map_err(|e| broken("WGSL", e.emit_to_string(shader.source)))?;
    let constants =
        shader.overrides.iter().map(|(name, value)| (name.to_string(), *value)).collect();
    let entry = Some((naga::ShaderStage::Compute, "main"));
    let (module, _) =
        naga::back::pipeline_constants::process_overrides(module, &info, entry, &constants)
            .map_err(|error| broken("override constants", error.to_string()))?;
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).map_err(|error| broken("types", error.to_string()))?;
    let workgroup_bytes = module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup)
        .map(|(_, variable)| u64::from(layouter[variable.ty].size))
        .sum();
    let entry = module.entry_points.iter().find(|e| e.name == "main");
    let entry = entry.ok_or_else(|| broken("entry point", "no function `main`".into()))?;
    let invocations = entry.workgroup_size.iter().map(|&n| u64::from(n)).product();
    Ok(Resources { workgroup_bytes, invocations })
}

/// Compiles a shader. `checked` keeps wgpu's bounds checks and loop bounds in the code.
pub(super) fn compile(
    device: &wgpu::Device,
    parameters: &wgpu::BindGroupLayout,
    shader: &Shader<'_>,
    checked: bool,
) -> Result<Pipeline> {
    let mut module = check_limits(shader, &device.limits())?;
    if shader.foreign && checked {
        super::loops::bound(&mut module);
    }
    let label = format!("{} [{}]", shader.kernel, shader.variant);
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(&label),
        source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(module)),
    };
    let module = if checked {
        device.create_shader_module(descriptor)
    } else {
        trusted_module(device, descriptor)
    };
    let entries: Vec<_> = (0u32..)
        .zip(shader.bindings)
        .map(|(binding, access)| storage_entry(binding, *access))
        .collect();
    let storage = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(&label),
        entries: &entries,
    });
    let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(&label),
        bind_group_layouts: &[Some(&storage), Some(parameters)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(&label),
        layout: Some(&layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: shader.overrides,
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    });
    match pollster::block_on(scope.pop()) {
        None => Ok(Pipeline { kernel: shader.kernel.to_string(), pipeline, storage }),
        Some(error) => Err(Error::Device {
            during: format!("compiling {label}"),
            reason: error.to_string().replace('\n', " | "),
        }),
    }
}

fn storage_entry(binding: u32, access: Access) -> wgpu::BindGroupLayoutEntry {
    let ty = wgpu::BindingType::Buffer {
        ty: wgpu::BufferBindingType::Storage { read_only: access == Access::Read },
        has_dynamic_offset: false,
        min_binding_size: None,
    };
    wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None }
}

#[expect(unsafe_code, reason = "wgpu marks shaders without run-time checks as unsafe to create")]
fn trusted_module(
    device: &wgpu::Device,
    descriptor: wgpu::ShaderModuleDescriptor<'_>,
) -> wgpu::ShaderModule {
    // SAFETY: our own kernels only. Each is run over its whole case table with checks on and guard words around its
    // outputs, its loops are bounded by parameters the host validated, and it divides by no zero.
    unsafe {
        device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
    }
}
