//! A case as one self-contained page, for people with another device or who write its driver: WGSL, inputs, expected
//! values with their bounds, and a WebGPU program that runs and judges it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::device::{Args, Case, HostTensor, Kernel, Variant, compose, guard_word};
use crate::error::{Error, Result};
use crate::gpu::Access;

/// The page of a case, as HTML. `source` is the kernel's WGSL before its imports are resolved.
pub fn page(kernel: &Kernel, variant: &Variant, case: &Case, source: &str) -> Result<String> {
    if variant.coop > 0 {
        return Err(Error::Unsupported {
            path: kernel.name.into(),
            what: "a page of this variant".into(),
            why: "it uses cooperative matrices, which no browser has".into(),
        });
    }
    let data = (case.make)(variant);
    let args = Args {
        variant,
        parameters: &data.parameters,
        tensors: data.tensors.iter().map(HostTensor::view).collect(),
    };
    let floats = |values: &[f64]| BASE64_STANDARD.encode(bytemuck::cast_slice::<f64, u8>(values));
    let expected: Vec<Value> = (kernel.reference)(&args)
        .iter()
        .map(|output| json!({"values": floats(&output.values), "bounds": floats(&output.bounds)}))
        .collect();
    let binding = |(index, (binding, tensor)): (usize, (&crate::device::Binding, &HostTensor))| {
        let access = match binding.access {
            Access::Read => "read",
            Access::Write => "write",
            Access::ReadWrite => "read_write",
        };
        json!({
            "index": index, "name": binding.name, "access": access, "type": tensor.dtype.name(),
            "guard": guard_word(tensor.dtype, binding.access),
            "data": BASE64_STANDARD.encode(bytemuck::cast_slice::<u32, u8>(&tensor.words)),
        })
    };
    let bindings: Vec<Value> =
        kernel.bindings.iter().zip(&data.tensors).enumerate().map(binding).collect();
    let mut features = Vec::new();
    let mut text = String::new();
    if variant.subgroups {
        // naga takes subgroup operations for granted, browsers want them announced.
        features.push("subgroups");
        text.push_str("enable subgroups;\n");
    }
    if variant.uses_f16() {
        features.push("shader-f16");
    }
    text.push_str(&compose(kernel, source, variant));
    let overrides: Map<String, Value> =
        kernel.overrides.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
    let groups = (kernel.groups)(&args);
    let case_json = json!({
        "source": text, "features": features, "overrides": overrides, "groups": groups.to_array(),
        "parameters": BASE64_STANDARD.encode(&data.parameters), "bindings": bindings, "expected": expected,
    });
    let title = format!("{} [{}] {}", kernel.name, variant.label(), case.label);
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    Ok(include_str!("../../../assets/html/case.html")
        .replace("%TITLE%", &title)
        // The text is inside a script element, which nothing in it may end.
        .replace("%CASE%", &case_json.to_string().replace("</", "<\\/")))
}
