//! Writing a model: a Hugging Face folder in f16, Lopper's own packed folder, a GGUF file, a folder as another tool quantizes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::checkpoint::{COPIES, Checkpoint, CopyOf, Weights, quantizable, to_gguf_order};
use super::export::ExportFormat;
use super::formats::{PACKED_VERSION, described};
use super::modules;
use crate::disk::write_record;
use crate::error::{Error, Result};
use crate::families::{
    Config, Origin, Role, TensorSpec, gguf_factor, head_name, main_type, metadata, stored_name,
};
use crate::formats::LazyBytes;
use crate::formats::gguf::{self, GgmlType, NewGgufTensor};
use crate::formats::quantized::{
    Inputs, Method, Module, Part, Writer, input_scale_name, remove_settings,
};
use crate::formats::safetensors::{NewTensor, continue_folder, folder_files, write_folder};
use crate::tensor::{DType, Packed, WeightFormat};
use crate::text::StoredTokenizer;

/// Shards of a Hugging Face folder are at most this large.
const MAX_SHARD_BYTES: u64 = 5 << 30;

/// The GGUF type a tensor of `weights` is exported in, and whether that holds it exactly. Blocks that `parent` has of it stay as
/// they are, in whatever type.
pub fn gguf_type(
    parent: &Checkpoint,
    weights: &dyn Weights,
    spec: &TensorSpec,
) -> Result<(GgmlType, bool)> {
    // llama.cpp wants vectors in f32, which holds every type that vectors come in.
    if spec.is_plain() {
        return Ok((GgmlType::F32, true));
    }
    if let Some(ty) = weights.copy_of(spec).and_then(|copy| parent.block_type(&copy)) {
        return Ok((ty, true));
    }
    // As llama.cpp's converter writes it.
    if matches!(spec.role, Role::Router | Role::Score | Role::Table) {
        return Ok((GgmlType::F32, true));
    }
    let holds = gguf::holds(weights.format(spec)?, spec.columns);
    // llama.cpp multiplies results by NVFP4's scale of the tensor: what is no product has none, and stacked experts several.
    let scaled = spec.role != Role::Embedding && spec.slot.expert().is_none();
    let holds = holds.filter(|ty| *ty != GgmlType::Nvfp4 || scaled);
    Ok(holds.map_or((GgmlType::F16, false), |ty| (ty, true)))
}

/// What is unusual about an export: what it holds in a wider type than f16, which would make a value infinite or lose a row of
/// small ones, and what it lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wide {
    /// The type of a Hugging Face folder, and the first tensor that asks for it.
    pub folder: Option<(DType, String)>,
    /// The tensors that a GGUF file has in f32, by the names in the checkpoint.
    pub tensors: Vec<String>,
    /// What a folder lacks that some of its readers want.
    pub lacks: Vec<String>,
}

impl Wide {
    /// What of `left`, which is made from `parent`, f16 will not hold, as far as the parent's values tell: of a format that is
    /// written in f16 though the parent has it in another. Reads those tensors; calls `progress` before each with those read and
    /// all, and its error ends it.
    pub fn foresee(
        format: ExportFormat,
        parent: &Checkpoint,
        left: &dyn Weights,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        let mut wide = Self::default();
        let total = left.specs().len();
        for (done, spec) in left.specs().iter().enumerate() {
            let narrows = match format {
                ExportFormat::Hf => wide.folder.is_none(),
                ExportFormat::Gguf => !gguf_type(parent, left, spec)?.1,
                _ => false,
            };
            let source = left.copy_of(spec).map_or_else(|| spec.name.clone(), |copy| copy.tensor);
            let source = parent.specs().iter().find(|whole| whole.name == source);
            let Some(source) = source.filter(|_| narrows) else { continue };
            if parent.format(source)? == WeightFormat::f16() {
                continue;
            }
            progress(done, total)?;
            if unheld(&as_stored(parent, source)?, DType::F16).is_none() {
                continue;
            }
            match format {
                ExportFormat::Hf => wide.folder = Some((wider(left)?, spec.name.clone())),
                _ => wide.tensors.push(spec.name.clone()),
            }
        }
        Ok(wide)
    }

    /// Whether a tensor of a GGUF file is written in f32: it, or the same of another expert, which stand in one tensor there.
    fn holds(&self, weights: &dyn Weights, spec: &TensorSpec) -> bool {
        let Some(stack) = spec.gguf_stack() else { return self.tensors.contains(&spec.name) };
        let mut specs = weights.specs().iter();
        !self.tensors.is_empty()
            && specs.any(|other| {
                self.tensors.contains(&other.name) && other.gguf_stack().as_ref() == Some(&stack)
            })
    }

    /// That in words, for whoever gets the files.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.lacks.clone();
        if let Some((dtype, name)) = &self.folder {
            notes.push(format!("f16 does not hold all values of {name}: hf is written in {dtype}"));
        }
        if let Some((first, more)) = self.tensors.split_first() {
            let (more, are) = match more.len() {
                0 => (String::new(), "it is"),
                count => (format!(" and of {count} more tensors"), "they are"),
            };
            notes.push(format!(
                "f16 does not hold all values of {first}{more}: {are} written in f32 in model.gguf"
            ));
        }
        notes
    }
}

/// Writes a folder that transformers opens: weights dequantized to f16, `config.json` as the parent's, given, but for what
/// changed. Vectors keep their type. Layers of several widths are an error: transformers' Llama has one for all. Where f16 would
/// make a value infinite, or a row of values nothing, the folder is in bf16 or f32, and the answer says so: transformers turns
/// every tensor into the one type of the configuration.
pub fn export_hf(
    folder: &Path,
    mut config: Map<String, Value>,
    weights: &dyn Weights,
    tokenizer: Option<&StoredTokenizer>,
) -> Result<Wide> {
    weights.config().check_plain(folder)?;
    let beyond = RefCell::new(None);
    let write = |dtype| write_folder(folder, hf_tensors(weights, dtype, &beyond)?, MAX_SHARD_BYTES);
    let (mut dtype, mut wide) = (DType::F16, Wide::default());
    if let Err(error) = write(dtype) {
        let Some(name) = beyond.take() else { return Err(error) };
        dtype = wider(weights)?;
        wide.folder = Some((dtype, name));
        remove_shards(folder)?;
        write(dtype)?;
    }
    config = weights.config().updated_json(config, weights.specs());
    remove_settings(&mut config);
    set_dtype(&mut config, dtype);
    check_config(folder, &config, weights.config())?;
    write_config(folder, &config)?;
    write_beside(folder, weights, tokenizer)?;
    if weights.config().input_type.is_some() {
        let what = "a Hugging Face folder has no word for inputs that are rounded, and its weights are no codes: they are taken as they are";
        wide.lacks.push(what.into());
    }
    Ok(wide)
}

/// The files with tensors that [`export_hf`] would write, and their bytes.
pub fn hf_files(weights: &dyn Weights, wide: &Wide) -> Result<Vec<(String, u64)>> {
    let dtype = wide.folder.as_ref().map_or(DType::F16, |(dtype, _)| *dtype);
    folder_files(hf_tensors(weights, dtype, &RefCell::default())?, MAX_SHARD_BYTES)
}

/// The tensors of a Hugging Face folder in a type. Puts the name of one whose values that type does not hold into `beyond`.
fn hf_tensors<'a>(
    weights: &'a dyn Weights,
    dtype: DType,
    beyond: &'a RefCell<Option<String>>,
) -> Result<Vec<NewTensor<'a>>> {
    let mut tensors = Vec::new();
    for spec in weights.config().further_biases(Path::new("hf"), weights.specs())? {
        let bytes = spec.columns * dtype.size();
        let data = Box::new(move || Ok(vec![0; bytes]));
        tensors.push(NewTensor { shape: spec.shape(), name: spec.name, dtype, data });
    }
    for spec in weights.specs() {
        let keep = spec.is_plain();
        let own = if keep { vector_dtype(weights.format(spec)?) } else { dtype };
        let data = move || {
            let packed = as_stored(weights, spec)?;
            let bytes = narrowed(&packed, dtype, spec, beyond)?;
            Ok(if own == dtype { bytes } else { dense_bytes(&packed, own) })
        };
        tensors.push(NewTensor {
            name: stored_name(weights.config(), spec),
            dtype: own,
            shape: spec.shape(),
            data: Box::new(data),
        });
    }
    Ok(tensors)
}

/// The type of a folder that f16 is too narrow for: bf16 if that is what all matrices are in, or else f32.
fn wider(weights: &dyn Weights) -> Result<DType> {
    for spec in weights.specs().iter().filter(|s| !s.is_plain()) {
        if weights.format(spec)? != WeightFormat::bf16() {
            return Ok(DType::F32);
        }
    }
    Ok(DType::Bf16)
}

/// Removes what an attempt in another type left.
fn remove_shards(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::write(folder))?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            std::fs::remove_file(&path).map_err(Error::write(&path))?;
        }
    }
    Ok(())
}

/// The values of a matrix in a narrower type. An error where it does not hold them, with the tensor's name in `beyond`.
fn narrowed(
    packed: &Packed,
    dtype: DType,
    spec: &TensorSpec,
    beyond: &RefCell<Option<String>>,
) -> Result<Vec<u8>> {
    let Some(found) = unheld(packed, dtype) else {
        return Ok(dense_bytes(packed, dtype));
    };
    beyond.replace(Some(spec.name.clone()));
    Err(Error::Tensor {
        path: "export".into(),
        tensor: spec.name.clone(),
        expected: format!("values that {dtype} holds"),
        found,
    })
}

/// Most of a row's sum of squares that may be lost on the way to a narrower type: an error of a hundredth. A row of numbers that
/// are normal in f16 loses 2.4e-7 of it at most, in bf16 3.8e-6; one of values around 2e-6, below the normal ones, 1e-4; one of
/// values below 3e-8 all.
const MOST_LOST: f64 = 1e-4;

/// Values that a type of 16 bits does not hold, in words: one that becomes infinite, or a row of them too small for its exponents.
/// By rows, because what is small beside the rest of a matrix may be all that an embedding or a channel has.
fn unheld(packed: &Packed, dtype: DType) -> Option<String> {
    let narrow: fn(f32) -> f32 = match dtype {
        _ if packed.format.ty.name == dtype.name() => return None,
        DType::F16 => |value| f16::from_f32(value).to_f32(),
        DType::Bf16 => |value| bf16::from_f32(value).to_f32(),
        _ => return None,
    };
    let row = |row: usize| {
        let mut values = vec![0.0f32; packed.columns];
        packed.decode_row(row, &mut values);
        let (mut lost, mut all, mut largest) = (0.0f64, 0.0f64, 0.0f32);
        for value in values {
            lost += f64::from(narrow(value) - value).powi(2);
            all += f64::from(value).powi(2);
            largest = largest.max(value.abs());
        }
        let found = match lost.is_finite() {
            false => format!("{largest:e} in row {row}"),
            true => format!("no value beyond {largest:e} in row {row}"),
        };
        (!lost.is_finite() || lost > MOST_LOST * all).then_some(found)
    };
    (0..packed.rows).into_par_iter().find_map_first(row)
}

/// Writes a folder that Lopper opens, with codes and scales as they are: `NAME.codes` and `NAME.scales`, u32 words of
/// (rows, words), and each tensor's format in `config.json` under `quantization_config`. Else that is as the parent's, given,
/// but for the sizes of `weights`, which may be arrays of one number a layer.
pub fn export_packed(
    folder: &Path,
    config: Map<String, Value>,
    weights: &dyn Weights,
    tokenizer: Option<&StoredTokenizer>,
) -> Result<()> {
    let write = |tensors| write_folder(folder, tensors, MAX_SHARD_BYTES);
    packed_folder(folder, config, weights, write)?;
    write_beside(folder, weights, tokenizer)
}

/// [`export_packed`] without a tokenizer, for a stage of a run: one tensor is in memory at a time, and a call after an
/// interruption, or a crash, continues at the first tensor that is not safely on the disk. Calls `progress` before each
/// tensor with those written and all; its error stops the writing.
pub fn continue_packed(
    folder: &Path,
    config: Map<String, Value>,
    weights: &dyn Weights,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    let copies = weights
        .specs()
        .iter()
        .filter_map(|spec| weights.copy_of(spec).map(|copy| (spec.name.as_str(), copy)));
    let copies: BTreeMap<&str, CopyOf> = copies.collect();
    let copies = serde_json::to_string(&copies).expect("copies are plain values");
    packed_folder(folder, config, weights, |tensors| {
        continue_folder(folder, tensors, MAX_SHARD_BYTES, progress)
    })?;
    write_record(&folder.join(COPIES), &copies)
}

/// The files with tensors that [`export_packed`] would write, and their bytes.
pub fn packed_files(weights: &dyn Weights) -> Result<Vec<(String, u64)>> {
    folder_files(packed_tensors(weights)?.0, MAX_SHARD_BYTES)
}

fn packed_folder<'a>(
    folder: &Path,
    mut config: Map<String, Value>,
    weights: &'a dyn Weights,
    write: impl FnOnce(Vec<NewTensor<'a>>) -> Result<Vec<PathBuf>>,
) -> Result<()> {
    let (tensors, formats) = packed_tensors(weights)?;
    write(tensors)?;
    config = weights.config().updated_json(config, weights.specs());
    remove_settings(&mut config);
    set_dtype(&mut config, DType::F16);
    config.insert(
        "quantization_config".into(),
        json!({"quant_method": "lopper", "version": PACKED_VERSION, "tensors": formats}),
    );
    write_config(folder, &config)
}

/// The tensors of a packed folder, and the formats of those that are codes and scales.
fn packed_tensors<'a>(
    weights: &'a dyn Weights,
) -> Result<(Vec<NewTensor<'a>>, Map<String, Value>)> {
    let mut tensors = Vec::new();
    let mut formats = Map::new();
    for spec in weights.specs() {
        let format = weights.format(spec)?;
        if format.ty.is_plain() {
            let dtype = vector_dtype(format);
            let data = move || Ok(dense_bytes(&as_stored(weights, spec)?, dtype));
            tensors.push(NewTensor {
                name: spec.name.clone(),
                dtype,
                shape: spec.shape(),
                data: Box::new(data),
            });
            continue;
        }
        formats.insert(spec.name.clone(), described(format));
        // Scales are written right after their codes: the tensor is loaded (or computed) once for both.
        let scales_of_codes = Rc::new(RefCell::new(None));
        let kept = scales_of_codes.clone();
        let codes = move || {
            let packed = weights.load(spec)?;
            kept.replace(Some(packed.scales));
            Ok(bytemuck::cast_slice(&packed.codes).to_vec())
        };
        let scales = move || {
            let scales = match scales_of_codes.take() {
                Some(scales) => scales,
                None => weights.load(spec)?.scales,
            };
            Ok(bytemuck::cast_slice(&scales).to_vec())
        };
        let mut add = |part: &str, words: usize, data: LazyBytes<'a>| {
            tensors.push(NewTensor {
                name: format!("{}.{part}", spec.name),
                dtype: DType::U32,
                shape: vec![spec.rows, words],
                data,
            });
        };
        add("codes", format.code_words_per_row(spec.columns), Box::new(codes));
        if format.ty.has_scales() {
            add("scales", format.scale_words_per_row(spec.columns), Box::new(scales));
        }
    }
    Ok((tensors, formats))
}

/// Writes a folder as another tool quantizes: codes and scales as they are in the tool's layout, what is not quantized as it is,
/// `config.json` as the parent's, given, but for what changed. An error where the method does not hold a weight exactly. The answer
/// says what the folder lacks.
pub fn export_quantized(
    folder: &Path,
    method: &'static Method,
    mut config: Map<String, Value>,
    weights: &dyn Weights,
    tokenizer: Option<&StoredTokenizer>,
) -> Result<Wide> {
    weights.config().check_plain(folder)?;
    let writer = arranged(method, weights)?;
    write_folder(folder, quantized_tensors(&writer, weights)?, MAX_SHARD_BYTES)?;
    config = weights.config().updated_json(config, weights.specs());
    remove_settings(&mut config);
    // The scales' type, in which the tools' readers multiply.
    set_dtype(&mut config, DType::F16);
    check_config(folder, &config, weights.config())?;
    config.extend(writer.keys.iter().map(|(key, value)| ((*key).to_string(), value.clone())));
    write_config(folder, &config)?;
    for (name, value) in &writer.files {
        write_bytes(&folder.join(name), format!("{value:#}\n").as_bytes())?;
    }
    write_beside(folder, weights, tokenizer)?;
    Ok(Wide { lacks: writer.notes(), ..Wide::default() })
}

/// The files with tensors that [`export_quantized`] would write, and their bytes.
pub fn quantized_files(
    method: &'static Method,
    weights: &dyn Weights,
) -> Result<Vec<(String, u64)>> {
    let writer = arranged(method, weights)?;
    folder_files(quantized_tensors(&writer, weights)?, MAX_SHARD_BYTES)
}

fn arranged(method: &'static Method, weights: &dyn Weights) -> Result<Writer> {
    let matrices = weights.specs().iter().filter(|s| !s.is_plain());
    let matrices = matrices.map(|spec| Ok((quantizable(spec), weights.format(spec)?)));
    let mut matrices: Vec<(Module<'_>, WeightFormat)> = matrices.collect::<Result<_>>()?;
    // A head that is the embedding is a linear layer to who reads the folder: one that is left alone, as that is.
    let config = weights.config();
    let shared = matrices.iter().find(|(module, format)| module.embedding && format.ty.is_plain());
    if let Some((embedding, format)) = shared.filter(|_| config.tied && config.has_head()) {
        let head = Module { name: head_name(config), embedding: false, ..*embedding };
        matrices.push((head, *format));
    }
    method.arrange(&matrices, inputs(weights.config()))
}

/// How a model rounds the inputs of its layers, as folders say it: by stored scales only where every block has them.
fn inputs(config: &Config) -> Option<Inputs> {
    let stored = config.blocks.iter().all(|block| block.input_scales.is_some());
    config.input_type.map(|ty| Inputs { ty, stored })
}

/// The scale of the inputs of a layer whose weight is quantized; `None` where each token has its own.
fn input_scale(config: &Config, spec: &TensorSpec, format: WeightFormat) -> Option<f32> {
    let layer = spec.layer.filter(|_| spec.role == Role::Linear)?;
    config.input_rounding(layer, spec.slot, format)?.scale
}

fn quantized_tensors<'a>(
    writer: &'a Writer,
    weights: &'a dyn Weights,
) -> Result<Vec<NewTensor<'a>>> {
    let mut tensors = Vec::new();
    for spec in weights.config().further_biases(Path::new("export"), weights.specs())? {
        let bytes = spec.columns * DType::F16.size();
        let data = Box::new(move || Ok(vec![0; bytes]));
        tensors.push(NewTensor { shape: spec.shape(), name: spec.name, dtype: DType::F16, data });
    }
    // Parts of a weight that are written one after the other are made of it while it is at hand.
    let last: Rc<RefCell<Option<(&str, Packed)>>> = Rc::default();
    for spec in weights.specs() {
        let Some(parts) = writer.parts(&spec.name) else {
            let dtype = vector_dtype(weights.format(spec)?);
            let data = move || Ok(dense_bytes(&as_stored(weights, spec)?, dtype));
            let (name, shape, data) = (spec.name.clone(), spec.shape(), Box::new(data));
            tensors.push(NewTensor { name, dtype, shape, data });
            continue;
        };
        let scale = input_scale(weights.config(), spec, weights.format(spec)?);
        if let Some(scale) = scale.filter(|_| writer.says_inputs()) {
            tensors.push(NewTensor {
                name: input_scale_name(&spec.name),
                dtype: DType::F32,
                shape: vec![1],
                data: Box::new(move || Ok(scale.to_le_bytes().to_vec())),
            });
        }
        for part in parts {
            let (name, dtype, shape) = (part.name.to_string(), part.types[0], part.shape.clone());
            let last = last.clone();
            let data = move || part_of(weights, spec, writer, &part, &mut last.borrow_mut());
            tensors.push(NewTensor { name, dtype, shape, data: Box::new(data) });
        }
    }
    Ok(tensors)
}

/// The bytes of a part of a weight, which is loaded where the last one was another.
fn part_of<'a>(
    weights: &dyn Weights,
    spec: &'a TensorSpec,
    writer: &Writer,
    part: &Part<'_>,
    last: &mut Option<(&'a str, Packed)>,
) -> Result<Vec<u8>> {
    let packed = match last.take() {
        Some((name, packed)) if name == spec.name => packed,
        _ => weights.load(spec)?,
    };
    let bytes = writer.store(&spec.name, part, &packed);
    *last = Some((&spec.name, packed));
    bytes
}

/// Writes a GGUF file for llama.cpp and what is built on it. Tensors that no GGUF type holds exactly are written in f16; where
/// that does not hold their values in f32, and the answer names those. Blocks that the parent has of a tensor are copied as they
/// are. Metadata is the parent's where it has some, but for the sizes of `weights`; layers of several widths make it architecture
/// `deci`.
pub fn export_gguf(
    path: &Path,
    parent: &Checkpoint,
    weights: &dyn Weights,
    tokenizer: Option<&StoredTokenizer>,
) -> Result<Wide> {
    let (mut wide, beyond) = (Wide::default(), RefCell::new(None));
    loop {
        let file = gguf_file(parent, weights, tokenizer, &wide, &beyond)?;
        let written = gguf::write(path, &file.metadata, file.tensors);
        let Some(name) = beyond.take() else { return written.map(|()| wide) };
        wide.tensors.push(name);
    }
}

/// Bytes of the file that [`export_gguf`] would write.
pub fn gguf_bytes(
    parent: &Checkpoint,
    weights: &dyn Weights,
    tokenizer: Option<&StoredTokenizer>,
    wide: &Wide,
) -> Result<u64> {
    let beyond = RefCell::default();
    let file = gguf_file(parent, weights, tokenizer, wide, &beyond)?;
    gguf::file_bytes(parent.path(), &file.metadata, &file.tensors)
}

/// The tensor beside one of NVFP4 that holds its scale; of copied blocks what the parent has beside them.
fn nvfp4_scale<'a>(
    parent: &'a Checkpoint,
    weights: &'a dyn Weights,
    spec: &'a TensorSpec,
    copy: Option<&CopyOf>,
) -> Result<Option<NewGgufTensor<'a>>> {
    let copied = copy.filter(|copy| parent.block_type(copy).is_some());
    let whole = copied.and_then(|copy| parent.specs().iter().find(|s| s.name == copy.tensor));
    let known = whole.map(|whole| parent.tensor_scale(whole)).transpose()?;
    if let Some(None) = known {
        return Ok(None);
    }
    let data = move || {
        let scale = match known.flatten() {
            Some(scale) => scale,
            None => {
                let packed = weights.load(spec)?;
                let scale = packed.row_scale(0);
                let other = (0..packed.rows).find(|row| packed.row_scale(*row) != scale);
                if let Some(row) = other {
                    return Err(Error::Tensor {
                        path: parent.path().into(),
                        tensor: spec.name.clone(),
                        expected: format!("one scale of all rows, as GGUF's NVFP4 has: {scale}"),
                        found: format!("{} of row {row}", packed.row_scale(row)),
                    });
                }
                scale
            }
        };
        Ok(scale.to_le_bytes().to_vec())
    };
    let name = spec.gguf_scale();
    let data = Box::new(data);
    Ok(Some(NewGgufTensor { name, ty: GgmlType::F32, shape: vec![1], data }))
}

/// What a GGUF file is made of.
struct GgufFile<'a> {
    metadata: Vec<(String, gguf::Value)>,
    tensors: Vec<NewGgufTensor<'a>>,
}

/// Tensors named in `wide` are in f32; `beyond` gets the name of one that should be, because f16 does not hold its values.
fn gguf_file<'a>(
    parent: &'a Checkpoint,
    weights: &'a dyn Weights,
    tokenizer: Option<&StoredTokenizer>,
    wide: &Wide,
    beyond: &'a RefCell<Option<String>>,
) -> Result<GgufFile<'a>> {
    let mut tensors = Vec::new();
    let mut matrices = Vec::new();
    let mut stacks = Stacks::default();
    for spec in weights.specs() {
        let (ty, exact) = gguf_type(parent, weights, spec)?;
        let ty = if wide.holds(weights, spec) { GgmlType::F32 } else { ty };
        let vector = spec.is_plain();
        if !vector {
            matrices.push(ty);
        }
        let copy = weights.copy_of(spec).filter(|_| !vector);
        if ty == GgmlType::Nvfp4 {
            tensors.extend(nvfp4_scale(parent, weights, spec, copy.as_ref())?);
        }
        let data = move || {
            let blocks = copy.as_ref().map(|copy| parent.blocks(copy, spec)).transpose()?;
            if let Some(blocks) = blocks.flatten() {
                return Ok(blocks);
            }
            let mut packed = to_gguf_order(weights.load(spec)?, spec);
            if let Some(factor) = gguf_factor(weights.config(), spec) {
                let values: Vec<f32> = packed.to_f32().iter().map(|v| v * factor).collect();
                packed = Packed::from_f32(&values, packed.rows, packed.columns);
            }
            Ok(match (ty, exact) {
                (GgmlType::F32, _) => dense_bytes(&packed, DType::F32),
                (_, true) => {
                    gguf::pack(&packed).map(|(_, bytes)| bytes).expect("the format was asked for")
                }
                (_, false) => narrowed(&packed, DType::F16, spec, beyond)?,
            })
        };
        let (name, shape, data) = (spec.gguf.clone(), spec.shape(), Box::new(data));
        let alone = NewGgufTensor { name, ty, shape, data };
        match spec.gguf_stack() {
            None => tensors.push(alone),
            Some(stack) => stacks.add(parent, &mut tensors, stack, alone)?,
        }
    }
    stacks.finish(&mut tensors);
    let head_dim = weights.config().head_dim;
    if let Some(divisors) = weights.config().ropes.first().and_then(|rope| rope.divisors(head_dim))
    {
        let bytes = move || Ok(bytemuck::cast_slice::<f32, u8>(&divisors).to_vec());
        let shape = vec![head_dim / 2];
        let name = "rope_freqs.weight".to_string();
        tensors.push(NewGgufTensor { name, ty: GgmlType::F32, shape, data: Box::new(bytes) });
    }
    let weights_in_all = weights.specs().iter().map(|spec| (spec.rows * spec.columns) as u64).sum();
    let main = main_type(matrices.into_iter());
    let origin = match parent.gguf() {
        Some(gguf) => Origin::Gguf(gguf),
        None => Origin::Other(parent.path(), tokenizer),
    };
    let metadata = metadata(origin, weights.config(), (weights_in_all, main))?;
    Ok(GgufFile { metadata, tensors })
}

/// The tensors of experts that a GGUF file has in one: of each such tensor its name, and what it is made of.
#[derive(Default)]
struct Stacks<'a>(Vec<(String, Vec<LazyBytes<'a>>)>);

impl<'a> Stacks<'a> {
    /// Puts a tensor of an expert behind those of the experts before it, in the stack of that name. An error if they are of several
    /// types.
    fn add(
        &mut self,
        parent: &Checkpoint,
        tensors: &mut Vec<NewGgufTensor<'a>>,
        name: String,
        alone: NewGgufTensor<'a>,
    ) -> Result<()> {
        let unused: LazyBytes<'a> = Box::new(|| Ok(Vec::new()));
        let Some(stack) = tensors.iter_mut().rev().find(|tensor| tensor.name == name) else {
            let shape = [&[1], &alone.shape[..]].concat();
            tensors.push(NewGgufTensor { name: name.clone(), ty: alone.ty, shape, data: unused });
            self.0.push((name, vec![alone.data]));
            return Ok(());
        };
        if stack.ty != alone.ty {
            let (expected, found) = (stack.ty, alone.ty);
            return Err(Error::Tensor {
                path: parent.path().into(),
                tensor: name,
                expected: format!(
                    "experts of one type, because a GGUF file has them in one tensor: {expected}, as the first"
                ),
                found: format!("{found} of {}; use packed", alone.name),
            });
        }
        stack.shape[0] += 1;
        let parts = self.0.iter_mut().rev().find(|(known, _)| *known == name);
        parts.expect("a stack has parts").1.push(alone.data);
        Ok(())
    }

    /// Gives the stacks among these tensors what they are made of.
    fn finish(self, tensors: &mut [NewGgufTensor<'a>]) {
        for (name, parts) in self.0 {
            let found = tensors.iter_mut().find(|tensor| tensor.name == name);
            let data = move || {
                let parts: Vec<Vec<u8>> = parts.iter().map(|part| part()).collect::<Result<_>>()?;
                Ok(parts.concat())
            };
            found.expect("a stack is a tensor").data = Box::new(data);
        }
    }
}

/// A tensor as Hugging Face's checkpoints store it: the weight of a norm without what its family adds.
fn as_stored(weights: &dyn Weights, spec: &TensorSpec) -> Result<Packed> {
    let packed = weights.load(spec)?;
    if spec.offset == 0.0 {
        return Ok(packed);
    }
    let values: Vec<f32> = packed.to_f32().iter().map(|v| v - spec.offset).collect();
    Ok(Packed::from_f32(&values, spec.rows, spec.columns))
}

fn vector_dtype(format: WeightFormat) -> DType {
    match format.ty.name {
        "f16" => DType::F16,
        "bf16" => DType::Bf16,
        _ => DType::F32,
    }
}

/// All values of a matrix in a float type, row-major.
fn dense_bytes(packed: &Packed, dtype: DType) -> Vec<u8> {
    let (columns, size) = (packed.columns, dtype.size());
    let mut bytes = vec![0; packed.rows * columns * size];
    bytes.par_chunks_exact_mut((columns * size).max(1)).enumerate().for_each(|(row, line)| {
        let mut values = vec![0.0f32; columns];
        packed.decode_row(row, &mut values);
        match dtype {
            DType::F16 => {
                for (place, value) in line.chunks_exact_mut(2).zip(&values) {
                    place.copy_from_slice(&f16::from_f32(*value).to_le_bytes());
                }
            }
            _ => values
                .iter()
                .enumerate()
                .for_each(|(index, value)| dtype.set(line, index, f64::from(*value))),
        }
    });
    bytes
}

fn set_dtype(config: &mut Map<String, Value>, dtype: DType) {
    // transformers 4 reads `torch_dtype`, 5 reads both; the newer key alone stays where it stood alone.
    let newer = config.contains_key("dtype") && !config.contains_key("torch_dtype");
    let (key, other) = if newer { ("dtype", "torch_dtype") } else { ("torch_dtype", "dtype") };
    config.remove(other);
    let name = match dtype {
        DType::F16 => "float16",
        DType::Bf16 => "bfloat16",
        _ => "float32",
    };
    config.insert(key.into(), name.into());
}

/// An error if a configuration, read again, is not that of the tensors beside it.
fn check_config(folder: &Path, config: &Map<String, Value>, tensors: &Config) -> Result<()> {
    let path = folder.join("config.json");
    let mut again = Config::from_json(&path, config)?;
    if let (false, false) = (again.has_head(), tensors.has_head()) {
        // How states become an embedding stands in files of its own.
        again.readout = tensors.readout.clone();
    }
    if again.computes_as(tensors) {
        return Ok(());
    }
    Err(Error::Malformed {
        path,
        what: "configuration to be written".into(),
        offset: None,
        expected: format!("that of the tensors, {tensors:?}"),
        found: format!("{again:?}"),
    })
}

fn write_config(folder: &Path, config: &Map<String, Value>) -> Result<()> {
    let text = format!("{:#}\n", Value::Object(config.clone()));
    write_bytes(&folder.join("config.json"), text.as_bytes())
}

/// What a folder has beside weights and their configuration: the tokenizer, and of a sentence encoder how it pools.
fn write_beside(
    folder: &Path,
    weights: &dyn Weights,
    tokenizer: Option<&StoredTokenizer>,
) -> Result<()> {
    let config = weights.config();
    if let Some(readout) = config.readout.as_ref().filter(|_| !config.has_head()) {
        modules::write(folder, readout, config.hidden_size)?;
    }
    write_tokenizer(folder, tokenizer)
}

fn write_tokenizer(folder: &Path, tokenizer: Option<&StoredTokenizer>) -> Result<()> {
    let Some(tokenizer) = tokenizer else {
        return Ok(());
    };
    let files = tokenizer.to_hf_files().unwrap_or_else(|error| {
        tracing::warn!("the folder is written without a tokenizer: {error}");
        Vec::new()
    });
    for (name, bytes) in files {
        write_bytes(&folder.join(name), &bytes)?;
    }
    Ok(())
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(Error::write(path))
}
