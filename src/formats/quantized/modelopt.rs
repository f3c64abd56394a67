//! NVFP4 folders of NVIDIA's ModelOpt.
//!
//! A linear layer of `n` inputs and `m` outputs has `weight` (u8, m x n/2: two E2M1 codes each, the first in the lower half),
//! `weight_scale` (E4M3, m x n/16) and `weight_scale_2` (f32, one). `w = weight_scale_2 * weight_scale * level(code)`, in f32.
//! `hf_quant_config.json` says so, and `quantization_config` of newer folders.

use serde_json::json;

use super::layout::{Codes, Grid, Layout, Numbers, Whole};
use super::{
    Arranged, Contents, Method, Module, Settings, Stated, Unarranged, columns_of, even_groups,
};
use crate::error::{Error, Result};
use crate::formats::safetensors::Safetensors;
use crate::tensor::DType;

pub(super) static METHOD: Method = Method {
    name: "modelopt",
    quant_methods: &["modelopt", "modelopt_fp4"],
    sidecar: Some(FILE),
    says_inputs: false,
    settings: |stated| Ok(Box::new(ModelOpt::read(stated)?)),
    holds: |module, format| {
        let nvfp4 = format.ty.name == "nvfp4" && format.group_size as usize == GROUP;
        nvfp4 && !module.embedding && even_groups(module, format)
    },
    arrange,
};

const FILE: &str = "hf_quant_config.json";
const GROUP: usize = 16;

#[derive(Debug)]
struct ModelOpt {
    notes: Vec<String>,
}

impl ModelOpt {
    fn read(stated: &Stated<'_>) -> Result<Self> {
        // The file of its own has one level more.
        let inner = stated.object.get("quantization").and_then(|inner| inner.as_object());
        let stated = match inner {
            Some(object) => &Stated { path: stated.path, key: "quantization", object },
            None => stated,
        };
        let algorithm = stated.text("quant_algo")?;
        if algorithm.as_deref() != Some("nvfp4") {
            return Err(Error::Unsupported {
                path: stated.path.into(),
                what: format!("quant_algo {}", algorithm.as_deref().unwrap_or("(none)")),
                why: "this version reads NVFP4 of ModelOpt".into(),
            });
        }
        if let Some(size) = stated.get("group_size").filter(|size| **size != GROUP) {
            return Err(stated.wrong("group_size", GROUP.to_string(), size));
        }
        let cache = stated.text("kv_cache_quant_algo")?;
        let note = "the quantization rounds the KV cache too; here it stays as it is";
        Ok(Self { notes: cache.map(|_| note.into()).into_iter().collect() })
    }
}

impl Settings for ModelOpt {
    fn layout(&self, tensors: &Safetensors, module: &Module<'_>) -> Result<Option<Layout>> {
        let bytes = |name: &str| tensors.get(name).is_some_and(|t| t.ty.name() == DType::U8.name());
        let scales = ["weight_scale", "weight_scale_2"].map(|end| module.part(end));
        let quantized =
            bytes(&module.part("weight")) || scales.iter().any(|name| tensors.get(name).is_some());
        Ok(quantized.then(|| layout(module)))
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

fn layout(module: &Module<'_>) -> Layout {
    let name = module.part("weight_scale");
    let scales = Numbers { name, types: &[DType::F8E4m3], columns_first: false };
    let whole = Some(Whole { name: module.part("weight_scale_2"), divides: false });
    Layout {
        rows: module.rows,
        columns: module.columns,
        codes: Codes::of_rows(module.part("weight"), 4, DType::U8),
        grid: Grid::TwoLevel { scales, whole },
        group: columns_of(Some(GROUP), module.columns),
        block_rows: 1,
        group_index: None,
        shape: None,
    }
}

fn arrange(contents: &Contents<'_>) -> Result<Arranged, Unarranged> {
    let plain = contents.plain_linear();
    let producer = json!({"name": "modelopt"});
    let file = json!({
        "producer": producer,
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": null,
            "group_size": GROUP,
            "exclude_modules": plain,
        },
    });
    let settings = json!({
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "producer": producer,
        "group_size": GROUP,
        "ignore": plain,
    });
    let note = "no input_scale is written, for activations were not measured: a reader that rounds them to 4 bits wants it";
    Ok(Arranged {
        layouts: contents.quantized.iter().map(|(module, _)| layout(module)).collect(),
        keys: vec![("quantization_config", settings)],
        files: vec![(FILE, file)],
        notes: vec![note.into()],
    })
}
