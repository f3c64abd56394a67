//! Every shader variant: valid, translated for every backend it may be given, and in agreement with the kernel table.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Kernel, Variant, compose, fragments};
use lopper::gpu::{Access, Shader, check_limits};
use lopper::kernels::TABLE;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

pub fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = TABLE
        .iter()
        .copied()
        .map(|kernel| {
            Trial::test(format!("shaders::{}", kernel.name), move || {
                for variant in (kernel.variants)() {
                    translate(kernel, &variant)
                        .map_err(|what| format!("{} [{}]: {what}", kernel.name, variant.label()))?;
                }
                Ok(())
            })
        })
        .collect();
    trials.push(Trial::test("shaders::each_function_stands_once", each_function_stands_once));
    trials.push(Trial::test("shaders::loops_count_in_integers", loops_count_in_integers));
    trials.push(Trial::test("shaders::paths_are_names", paths_are_names));
    trials.push(Trial::test(
        "shaders::oversized_workgroup_is_refused_in_the_host",
        oversized_workgroup,
    ));
    trials
}

/// A float counter stops counting where its step is below its precision: a loop that never ends, and a lost device.
fn loops_count_in_integers() -> Result<(), Failed> {
    for kernel in TABLE {
        let header = |line: &&str| line.trim_start().starts_with("for ");
        let mut headers = kernel.source.lines().filter(header);
        if let Some(line) = headers.find(|line| line.contains(".0")) {
            return Err(format!("{}: {}", kernel.name, line.trim()).into());
        }
    }
    Ok(())
}

fn translate(kernel: &Kernel, variant: &Variant) -> Result<(), String> {
    let source = compose(kernel, kernel.source, variant);
    let label = variant.label();
    let accesses: Vec<Access> = kernel.bindings.iter().map(|binding| binding.access).collect();
    let shader = Shader {
        kernel: kernel.name,
        variant: &label,
        source: &source,
        bindings: &accesses,
        overrides: kernel.overrides,
        foreign: false,
    };
    // What WebGPU promises everywhere: all must fit it but what only machines with matrix units run.
    let mut limits = wgpu::Limits::default();
    if variant.coop > 0 {
        limits.max_compute_workgroup_storage_size = 32 << 10;
    }
    let module = check_limits(&shader, &limits).map_err(|error| error.to_string())?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(&module).map_err(|error| format!("{error:?}"))?;
    agrees_with_table(kernel, &module)?;
    let constants =
        kernel.overrides.iter().map(|(name, value)| (name.to_string(), *value)).collect();
    let entry = Some((naga::ShaderStage::Compute, "main"));
    let (module, info) =
        naga::back::pipeline_constants::process_overrides(&module, &info, entry, &constants)
            .map_err(|error| error.to_string())?;
    to_spirv(&module, &info)?;
    to_msl(&module, &info)?;
    // Its writer panics on cooperative matrices, which DX12 does not offer.
    if variant.coop == 0 {
        to_hlsl(&module, &info)?;
    }
    // The GL backend offers neither f16 nor subgroups, so it is never given those variants.
    if !variant.uses_f16() && !variant.subgroups {
        to_glsl(&module, &info)?;
    }
    Ok(())
}

fn agrees_with_table(kernel: &Kernel, module: &naga::Module) -> Result<(), String> {
    let mut found = BTreeMap::new();
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else {
            continue;
        };
        match variable.space {
            naga::AddressSpace::Storage { access } => {
                let writes = access.contains(naga::StorageAccess::STORE);
                found.insert(binding.binding, (variable.name.clone().unwrap_or_default(), writes));
            }
            naga::AddressSpace::Uniform => {
                let size = module.types[variable.ty].inner.size(module.to_ctx()) as usize;
                if size != kernel.parameters.bytes {
                    return Err(format!(
                        "parameters: {size} bytes in WGSL, {} in Rust",
                        kernel.parameters.bytes
                    ));
                }
            }
            _ => {
                return Err(format!("unexpected address space of binding {}", binding.binding));
            }
        }
    }
    let table: BTreeMap<u32, (String, bool)> = (0u32..)
        .zip(kernel.bindings)
        .map(|(index, binding)| (index, (binding.name.to_string(), binding.access != Access::Read)))
        .collect();
    if found != table {
        return Err(format!("bindings: {found:?} in WGSL, {table:?} in the table"));
    }
    Ok(())
}

fn to_spirv(module: &naga::Module, info: &ModuleInfo) -> Result<(), String> {
    let options = naga::back::spv::Options { lang_version: (1, 4), ..Default::default() };
    let words = naga::back::spv::write_vec(module, info, &options, None)
        .map_err(|error| format!("SPIR-V: {error}"))?;
    spirv_val(&words)
}

/// What the Khronos validator says, where it is installed (`spirv-tools`).
fn spirv_val(words: &[u32]) -> Result<(), String> {
    static INSTALLED: LazyLock<bool> =
        LazyLock::new(|| Command::new("spirv-val").arg("--version").output().is_ok());
    if !*INSTALLED {
        return Ok(());
    }
    let mut child = Command::new("spirv-val")
        .args(["--target-env", "vulkan1.3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("spirv-val: {error}"))?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut input = child.stdin.take().ok_or("spirv-val reads no input")?;
    input.write_all(&bytes).map_err(|error| format!("spirv-val: {error}"))?;
    drop(input);
    let done = child.wait_with_output().map_err(|error| format!("spirv-val: {error}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    // A validator older than cooperative matrices (SPV_KHR_cooperative_matrix is 6022) cannot judge them.
    if done.status.success() || said.contains("Invalid capability operand: 6022") {
        return Ok(());
    }
    Err(format!("spirv-val: {}", said.trim()))
}

fn to_msl(module: &naga::Module, info: &ModuleInfo) -> Result<(), String> {
    let options = naga::back::msl::Options {
        fake_missing_bindings: true,
        lang_version: (2, 4),
        ..Default::default()
    };
    let pipeline = naga::back::msl::PipelineOptions::default();
    naga::back::msl::write_string(module, info, &options, &pipeline)
        .map(|_| ())
        .map_err(|error| format!("MSL: {error}"))
}

fn to_hlsl(module: &naga::Module, info: &ModuleInfo) -> Result<(), String> {
    let options = naga::back::hlsl::Options {
        shader_model: naga::back::hlsl::ShaderModel::V6_2,
        fake_missing_bindings: true,
        ..Default::default()
    };
    let mut text = String::new();
    let pipeline = naga::back::hlsl::PipelineOptions::default();
    naga::back::hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .map(|_| ())
        .map_err(|error| format!("HLSL: {error}"))
}

fn to_glsl(module: &naga::Module, info: &ModuleInfo) -> Result<(), String> {
    let options = naga::back::glsl::Options {
        version: naga::back::glsl::Version::new_gles(310),
        ..Default::default()
    };
    let pipeline = naga::back::glsl::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: "main".into(),
        multiview: None,
    };
    let mut text = String::new();
    let policies = naga::proc::BoundsCheckPolicies::default();
    naga::back::glsl::Writer::new(&mut text, module, info, &options, &pipeline, policies)
        .and_then(|mut writer| writer.write())
        .map(|_| ())
        .map_err(|error| format!("GLSL: {error}"))
}

fn function_names(source: &str) -> impl Iterator<Item = &str> {
    source
        .lines()
        .filter_map(|line| line.strip_prefix("fn "))
        .filter_map(|rest| rest.split('(').next())
        .filter(|name| *name != "main")
}

/// Shared WGSL is imported, not copied. Fragments that stand for each other (`weight_*`, `reduce_*`) share names.
fn each_function_stands_once() -> Result<(), Failed> {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, source) in fragments() {
        let family = name.split('_').next().unwrap_or(name);
        for function in function_names(source) {
            let place = format!("shared/{family}");
            let known = places.entry(function).or_default();
            if !known.contains(&place) {
                known.push(place);
            }
        }
    }
    for kernel in TABLE {
        for function in function_names(kernel.source) {
            places.entry(function).or_default().push(kernel.name.to_string());
        }
    }
    let twice: Vec<_> = places.iter().filter(|(_, places)| places.len() > 1).collect();
    assert!(twice.is_empty(), "defined more than once: {twice:?}");
    Ok(())
}

fn paths_are_names() -> Result<(), Failed> {
    for kernel in TABLE {
        for path in
            [format!("shaders/{}.wgsl", kernel.name), format!("src/kernels/{}.rs", kernel.name)]
        {
            if !std::path::Path::new(&path).is_file() {
                return Err(format!("{} has no {path}", kernel.name).into());
            }
        }
    }
    for folder in
        std::fs::read_dir("shaders")?.flatten().filter(|entry| entry.file_name() != "shared")
    {
        for file in std::fs::read_dir(folder.path())?.flatten() {
            let path = file.path();
            let name = path
                .strip_prefix("shaders")?
                .with_extension("")
                .to_string_lossy()
                .replace('\\', "/");
            if !TABLE.iter().any(|kernel| kernel.name == name) {
                return Err(format!("shaders/{name}.wgsl is not in the kernel table").into());
            }
        }
    }
    Ok(())
}

fn oversized_workgroup() -> Result<(), Failed> {
    let source = "override SIZE: u32; var<workgroup> large: array<f32, SIZE>;
        @compute @workgroup_size(64) fn main() { large[0] = 1.0; }";
    let shader = |size: f64| {
        let overrides = [("SIZE", size)];
        let shader = Shader {
            kernel: "large",
            variant: "",
            source,
            bindings: &[],
            overrides: &overrides,
            foreign: false,
        };
        check_limits(&shader, &wgpu::Limits::default())
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    shader(4096.0)?;
    match shader(4097.0) {
        Err(text) if text.contains("16388 bytes of workgroup storage") => Ok(()),
        other => Err(format!("16388 bytes of workgroup storage: {other:?}").into()),
    }
}
