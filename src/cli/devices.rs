//! `lopper devices`: the adapters of this machine.

use serde_json::{Value, json};

use super::Global;
use super::output::{Output, bytes, table};
use super::session::known_winners;
use crate::error::Result;
use crate::gpu::{Adapter, adapters, backend_name};
use crate::kernels::matmul::Engine;
use crate::kernels::matmul::product::MatmulShape;
use crate::kernels::matmul::product::Winners;
use crate::tensor::{DType, WHOLE_ROW, WeightFormat, weight_type};

pub(super) fn run(global: &Global, output: &Output) -> Result<()> {
    let asked = global.selector()?.or_environment()?;
    let found = adapters(&asked);
    output.json(&Value::Array(found.iter().map(describe).collect()))?;
    if found.is_empty() {
        output.line(if asked.name.is_some() || asked.backend.is_some() {
            "no adapter matches; without --adapter, --backend, WGPU_ADAPTER_NAME and WGPU_BACKEND all are listed"
        } else {
            "no adapter found; on Debian `apt-get install mesa-vulkan-drivers` gives a software one"
        });
        return Ok(());
    }
    let head = ["backend", "type", "name", "driver", "tier", "features", "binding", "workgroup"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for adapter in &found {
        rows.push(vec![
            backend_name(adapter.info.backend).into(),
            adapter.type_name().into(),
            adapter.info.name.clone(),
            adapter.driver(),
            adapter.tier().name().into(),
            features(adapter).join(" "),
            bytes(adapter.limits.max_storage_buffer_binding_size),
            bytes(adapter.limits.max_compute_workgroup_storage_size.into()),
        ]);
    }
    output.text(&table(&rows));
    if global.verbose > 0 {
        for adapter in &found {
            let limits = &adapter.limits;
            output.line(format!(
                "\n{} ({}): memory {}, subgroups {} to {}, invocations {}, storage buffers {}, buffer {}, cooperative matrices: {}",
                adapter.info.name,
                backend_name(adapter.info.backend),
                adapter.memory.map_or("unknown".into(), bytes),
                adapter.info.subgroup_min_size,
                adapter.info.subgroup_max_size,
                limits.max_compute_invocations_per_workgroup,
                limits.max_storage_buffers_per_shader_stage,
                bytes(limits.max_buffer_size),
                if adapter.cooperative.is_empty() { "none".into() } else { adapter.cooperative.join(", ") },
            ));
            choices(global, adapter, output)?;
        }
    }
    Ok(())
}

/// Which kernels would compute some products of 4096 x 4096, and how many winners tuning has found.
fn choices(global: &Global, adapter: &Adapter, output: &Output) -> Result<()> {
    let winners = match global.no_autotune {
        true => Winners::new(),
        false => known_winners(adapter, output),
    };
    let capabilities = adapter.capabilities;
    let activation = if capabilities.f16 { DType::F16 } else { DType::F32 };
    let mut rows = vec![["weight", "tokens", "kernel", "chosen"].map(String::from).to_vec()];
    for (name, group_size) in [("f16", WHOLE_ROW), ("int8", 32), ("uint4m", 32), ("int2", 64)] {
        let Some(ty) = weight_type(name) else {
            continue;
        };
        let weight = WeightFormat { ty, group_size };
        for tokens in [1, 8, 512] {
            let product = MatmulShape {
                activation,
                bytes: if capabilities.f16 { 2 } else { 3 },
                output: activation,
                engine: Engine::Auto,
                weight,
                rows: 4096,
                columns: 4096,
                tokens,
            };
            let winner = winners.get(&product.class()).map(String::as_str);
            let choice = product.choose(capabilities, winner).label();
            let how = if winner == Some(&choice) { "by tuning" } else { "by analysis" };
            rows.push(vec![weight.label(), tokens.to_string(), choice, how.into()]);
        }
    }
    output.line(format!(
        "products of 4096 x 4096 with {activation} activations ({} classes tuned):",
        winners.len()
    ));
    output.text(&table(&rows));
    Ok(())
}

fn features(adapter: &Adapter) -> Vec<&'static str> {
    let bits = adapter.capabilities;
    let named = [
        (bits.f16, "f16"),
        (bits.subgroups, "subgroups"),
        (bits.timestamps, "timestamps"),
        (bits.cooperative_matrix > 0, "cooperative-matrix"),
    ];
    named.into_iter().filter_map(|(has, name)| has.then_some(name)).collect()
}

fn describe(adapter: &Adapter) -> Value {
    let limits = &adapter.limits;
    json!({
        "schema": 1,
        "name": adapter.info.name,
        "backend": backend_name(adapter.info.backend),
        "type": adapter.type_name(),
        "driver": adapter.driver(),
        "tier": adapter.tier().name(),
        "limits": {
            "max_storage_buffer_binding_size": limits.max_storage_buffer_binding_size,
            "max_buffer_size": limits.max_buffer_size,
            "max_compute_workgroup_storage_size": limits.max_compute_workgroup_storage_size,
            "max_compute_invocations_per_workgroup": limits.max_compute_invocations_per_workgroup,
            "max_compute_workgroups_per_dimension": limits.max_compute_workgroups_per_dimension,
            "max_storage_buffers_per_shader_stage": limits.max_storage_buffers_per_shader_stage,
            "subgroup_min_size": adapter.info.subgroup_min_size,
            "subgroup_max_size": adapter.info.subgroup_max_size,
        },
        "features": features(adapter),
        "cooperative_matrices": adapter.cooperative,
    })
}
