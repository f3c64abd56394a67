//! AWQ (Lin et al. 2023, arXiv 2306.00978) as AutoAWQ stores it for its GEMM kernel: 4 bits.
//!
//! A linear layer of `n` inputs and `m` outputs has `qweight` (i32, n x m/8: codes along the outputs, those of a word in the
//! order 0, 2, 4, 6, 1, 3, 5, 7), `qzeros` (i32, groups x m/8, in the same order) and `scales` (f16, groups x m).
//! `w = scale * (code - zero)`, which AutoAWQ's reader computes in the type of the scales.

use serde_json::json;

use super::layout::{Along, Codes, FLOATS, Grid, Layout, Numbers, Stored};
use super::{
    Arranged, Contents, Method, Module, Settings, Stated, Unarranged, columns_of, even_groups,
    group_of, group_value, integer_bits,
};
use crate::error::{Error, Result};
use crate::formats::safetensors::Safetensors;
use crate::tensor::DType;

pub(super) static METHOD: Method = Method {
    name: "awq",
    quant_methods: &["awq"],
    sidecar: Some("quant_config.json"),
    says_inputs: false,
    settings: |stated| Ok(Box::new(Awq::read(stated)?)),
    holds: |module, format| {
        let words = module.rows.is_multiple_of(8);
        !module.embedding && words && even_groups(module, format) && integer_bits(format, &[4])
    },
    arrange,
};

/// Where the codes of a word stand: code 1 is the fifth, after 0, 2, 4 and 6.
const ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

#[derive(Debug)]
struct Awq {
    group: Option<usize>,
}

impl Awq {
    fn read(stated: &Stated<'_>) -> Result<Self> {
        // AutoAWQ's own file has other names than config.json.
        let either = |name, other| if stated.get(name).is_some() { name } else { other };
        let version = stated.text("version")?.or(stated.text("format")?);
        if let Some(version) = version.filter(|version| version != "gemm") {
            return Err(Error::Unsupported {
                path: stated.path.into(),
                what: format!("version {version} of AWQ"),
                why: "this version reads gemm".into(),
            });
        }
        let (bits, group) = (either("bits", "w_bit"), either("group_size", "q_group_size"));
        stated.bits(bits, stated.get(bits), &[4])?;
        Ok(Self { group: stated.group_size(group, stated.get(group))? })
    }
}

impl Settings for Awq {
    fn layout(&self, tensors: &Safetensors, module: &Module<'_>) -> Result<Option<Layout>> {
        let there = |end: &str| tensors.get(&module.part(end)).is_some();
        if module.embedding || !["qweight", "qzeros", "scales"].into_iter().any(there) {
            return Ok(None);
        }
        Ok(Some(layout(module, self.group)))
    }
}

fn layout(module: &Module<'_>, group: Option<usize>) -> Layout {
    let codes = |end: &str| Codes {
        name: module.part(end),
        bits: 4,
        word: DType::I32,
        along: Along::Rows,
        columns_first: true,
        order: Some(&ORDER),
        stored: Stored::Unsigned,
    };
    Layout {
        rows: module.rows,
        columns: module.columns,
        codes: codes("qweight"),
        grid: Grid::Integers {
            scales: Numbers { name: module.part("scales"), types: FLOATS, columns_first: true },
            zeros: Some(codes("qzeros")),
        },
        group: columns_of(group, module.columns),
        block_rows: 1,
        group_index: None,
        shape: None,
    }
}

/// AWQ has one group size for all modules: the smallest that there is, in which larger groups repeat their scales.
fn arrange(contents: &Contents<'_>) -> Result<Arranged, Unarranged> {
    let group = contents.quantized.iter().filter_map(|(_, format)| group_of(*format)).min();
    let uneven = |(module, _): &_| -> bool {
        let module: &Module<'_> = module;
        !module.columns.is_multiple_of(columns_of(group, module.columns))
    };
    if let Some(index) = contents.quantized.iter().position(uneven) {
        let columns = group.unwrap_or_default();
        return Err(Unarranged { index, expected: format!("rows of whole groups of {columns}") });
    }
    let settings = json!({
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_value(group),
        "zero_point": true,
        "version": "gemm",
        "modules_to_not_convert": contents.plain_linear(),
    });
    Ok(Arranged {
        layouts: contents.quantized.iter().map(|(module, _)| layout(module, group)).collect(),
        keys: vec![("quantization_config", settings)],
        files: Vec::new(),
        notes: Vec::new(),
    })
}
