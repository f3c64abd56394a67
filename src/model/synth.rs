//! Models of real shapes with random weights: for speed and memory, where values do not matter but sizes do. A tensor is
//! made when it is asked for, the same every time, so that a model larger than memory can be written.

use half::f16;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::checkpoint::Weights;
use crate::device::Random;
use crate::error::{Error, Result};
use crate::families::{Config, Role, SHAPES, TensorSpec, tensor_specs};
use crate::kernels::weights::draw_kept;
use crate::tensor::{Packed, Scale, WeightFormat};
use crate::text::{HfFiles, Tokenizer};

/// A model of random weights.
#[derive(Debug)]
pub struct Synth {
    config: Config,
    config_json: Map<String, Value>,
    specs: Vec<TensorSpec>,
    format: WeightFormat,
    seed: u64,
}

impl Synth {
    /// The names of the shapes.
    pub fn shapes() -> Vec<&'static str> {
        SHAPES.iter().map(|shape| shape.name).collect()
    }

    /// A model of that shape, its linear layers in `format`, embedding and head in f16; with `layers`, only so many. An
    /// unknown name is an error that lists those there are.
    pub fn new(
        shape: &str,
        format: WeightFormat,
        layers: Option<usize>,
        seed: u64,
    ) -> Result<Self> {
        let mut shapes = SHAPES.iter();
        let found = shapes.find(|known| [known.name, known.short].contains(&shape));
        let found = found.ok_or_else(|| Error::Argument {
            argument: "SHAPE".into(),
            expected: Self::shapes().join(", "),
            found: shape.into(),
        })?;
        let config_json = found.config_json(layers.unwrap_or(found.layers));
        let config = Config::from_json(shape.as_ref(), &config_json)?;
        Ok(Self {
            specs: tensor_specs(&config).into_iter().filter(|spec| !spec.optional).collect(),
            config,
            config_json,
            format,
            seed,
        })
    }

    /// `config.json`.
    pub fn config_json(&self) -> &Map<String, Value> {
        &self.config_json
    }

    /// One token per byte, and `<s>`, `</s>` behind them: texts of any kind can be measured, if not with sense.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let mut vocabulary = Map::new();
        for (id, letter) in byte_letters().into_iter().enumerate() {
            vocabulary.insert(letter.to_string(), json!(id));
        }
        let special = |id: usize, text: &str| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let document = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [special(256, "<s>"), special(257, "</s>")],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": []},
        });
        let settings = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false});
        Tokenizer::from_hf(
            "the byte tokenizer".as_ref(),
            HfFiles {
                tokenizer_json: document.to_string().as_bytes(),
                tokenizer_config: Some(settings.to_string().as_bytes()),
                ..HfFiles::default()
            },
        )
    }
}

/// GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others follow from U+0100 on.
fn byte_letters() -> Vec<char> {
    let plain = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let letter = |byte: u32| {
        let code = if plain(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    (0..256).map(letter).collect()
}

impl Weights for Synth {
    fn config(&self) -> &Config {
        &self.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        Ok(match spec.role {
            Role::Linear => self.format,
            _ => WeightFormat::f16(),
        })
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let format = self.format(spec)?;
        let name = Random::seed_of(self.seed, &spec.name);
        let rows: Vec<Packed> = (0..spec.rows)
            .into_par_iter()
            .map(|row| random_row(format, spec, Random::new(name.wrapping_add(row as u64))))
            .collect();
        let mut packed = Packed::zeros(format, spec.rows, spec.columns);
        packed.codes = rows.iter().flat_map(|row| &row.codes).copied().collect();
        packed.scales = rows.iter().flat_map(|row| &row.scales).copied().collect();
        Ok(packed)
    }
}

/// One row, of about unit variance over its products: activations keep their size through any number of layers.
fn random_row(format: WeightFormat, spec: &TensorSpec, mut random: Random) -> Packed {
    let (ty, columns) = (format.ty, spec.columns);
    let mut row = Packed::zeros(format, 1, columns);
    let spread = (3.0 / columns as f32).sqrt();
    if ty.is_plain() {
        for column in 0..columns {
            let value = match spec.role {
                Role::Norm => 1.0 + 0.1 * random.value(),
                _ => spread * random.value(),
            };
            let code = match ty.bits {
                32 => value.to_bits(),
                _ if ty.name == "bf16" => half::bf16::from_f32(value).to_bits().into(),
                _ => f16::from_f32(value).to_bits().into(),
            };
            row.set_code(0, column, code);
        }
        return row;
    }
    let codes = ty.codes();
    let top = (0..codes).map(|code| ty.level(code)).filter(|level| level.is_finite());
    let top = top.fold(0.0, f32::max);
    let half = 0.5 * (codes - 1) as f32;
    let step = spread / if ty.is_affine() { half } else { top };
    let bits = |value: f32| f16::from_f32(value).to_bits();
    if ty.scale == Scale::TwoLevel {
        row.set_row_scale(0, step);
    }
    // As integers of groups, the middle of what their bits hold.
    let integer = ty.super_block().map_or(0, |of| 1 << (of.bits - 2));
    for index in 0..format.super_blocks_per_row(columns) {
        let of_one = step / f32::from(integer);
        row.set_super_scales(0, index, bits(of_one), bits(of_one * half));
    }
    for group in 0..format.groups_per_row(columns) {
        let scale = match ty.scale {
            Scale::SuperOffset(_) | Scale::SuperSymmetric(_) => integer,
            // 1 in E4M3.
            Scale::TwoLevel => 0x38,
            Scale::PowerOfTwo => (step.to_bits() >> 23) as u16,
            _ => bits(step),
        };
        let second = match ty.scale {
            Scale::ZeroPoint => bits(half.round()),
            Scale::Offset => bits(-step * half),
            Scale::SuperOffset(_) => integer,
            _ => 0,
        };
        row.set_group(0, group, scale, second);
    }
    if let Some(pattern) = ty.sparsity {
        // As many products as are left must add up to as much.
        let spread = spread * (pattern.of as f32 / pattern.kept as f32).sqrt();
        draw_kept(&mut random, &mut row, 0, pattern, |random| match ty.bits {
            16 => f16::from_f32(spread * random.value()).to_bits().into(),
            _ => random.below(codes),
        });
        return row;
    }
    for column in 0..columns {
        let code = random.below(codes);
        row.set_code(0, column, if ty.level(code).is_finite() { code } else { 0 });
    }
    row
}
