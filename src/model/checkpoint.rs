//! Opening a model: a Hugging Face folder, a GGUF file, an embedded model, or a folder that Lopper wrote.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::embedded::{EMBEDDED, EmbeddedModel, LEFT_OUT};
use super::formats::packed_formats;
use super::locate::{Place, locate, without_weights};
use super::modules;
use crate::disk;
use crate::error::{Error, Result, shown};
use crate::families::{
    Config, Role, TensorSpec, Unread, canonical, embedding_name, head_name, input_place,
    tensor_specs, unread,
};
use crate::formats::gguf::{GgmlType, Gguf, Value as Meta};
use crate::formats::json;
use crate::formats::quantized::{
    Inputs, Module, Quantization, Quantized, input_scale_name, of_activations,
};
use crate::formats::safetensors::Safetensors;
use crate::formats::{Source, StoredType, foreign};
use crate::tensor::{Packed, WeightFormat};
use crate::text::{FILES, StoredTokenizer, Tokenizer};

/// In a stage's folder: what it has of the run's own model, by name.
pub(super) const COPIES: &str = "copies.json";

/// Something that has a model's tensors, by their Hugging Face names, in Hugging Face's row order. The weight of a norm is what
/// normalized columns are multiplied by, whatever a checkpoint leaves out of it.
pub trait Weights {
    /// The configuration.
    fn config(&self) -> &Config;
    /// The tensors that are there, in the order a model meets them.
    fn specs(&self) -> &[TensorSpec];
    /// One of them. Shape and values have been checked.
    fn load(&self, spec: &TensorSpec) -> Result<Packed>;
    /// The format that [`Weights::load`] gives, from headers alone.
    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat>;
    /// What it has of the first model's tensor, if that is all it is: then the blocks there can stand for it as they are.
    fn copy_of(&self, _: &TensorSpec) -> Option<CopyOf> {
        None
    }
}

/// A tensor that is another one's, value for value, or some of its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOf {
    /// The other one's name.
    pub tensor: String,
    /// Its rows, in order; `None`: all, or as many as a plan says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<usize>>,
}

/// A model on disk or in the program. Tensors are read when they are asked for.
pub struct Checkpoint {
    path: PathBuf,
    store: Store,
    config: Config,
    config_json: Option<Map<String, Value>>,
    specs: Vec<TensorSpec>,
    embedded: Option<&'static EmbeddedModel>,
    notes: Vec<String>,
    /// Of a stage's result, what it has of the run's own model.
    copies: Option<HashMap<String, CopyOf>>,
}

enum Store {
    Safetensors(Safetensors),
    /// Lopper's own packed folder: codes and scales apart, formats from the configuration.
    Packed(Safetensors, HashMap<String, WeightFormat>),
    /// A folder that another tool quantized: weights by its method, the rest plain.
    Quantized(Box<Quantized>),
    Gguf(Box<Gguf>),
}

impl Checkpoint {
    /// Opens `MODEL` of the command contract: a folder, a `.gguf` file, or `embedded:NAME`.
    pub fn open(model: &str) -> Result<Self> {
        if let Some(name) = model.strip_prefix("embedded:") {
            return Self::open_embedded(name);
        }
        if let Some(name) = model.strip_prefix("hub:") {
            return Err(Error::Unsupported {
                path: model.into(),
                what: "fetching from a hub".into(),
                why: format!("download {name} yourself and give its folder"),
            });
        }
        match locate(model)? {
            Place::Folder(folder) => Self::open_folder(&folder),
            Place::File(file) => Self::open_gguf(&file),
        }
    }

    fn new(
        path: PathBuf,
        store: Store,
        config: Config,
        config_json: Option<Map<String, Value>>,
    ) -> Self {
        let (specs, notes) = (vec![], vec![]);
        Self { path, store, config, config_json, specs, embedded: None, notes, copies: None }
    }

    /// Opens a packed folder that is part of a model of this configuration: what a stage left of it, of other sizes perhaps.
    /// Unlike [`Checkpoint::open`] it does not depend on what a `config.json` can say.
    pub fn open_stage(folder: &Path, config: Config) -> Result<Self> {
        let path = folder.join("config.json");
        let text = disk::read_json(&path, disk::SETTINGS)?;
        let config_json = parse_object(&path, &text)?;
        let formats = packed_formats(&path, &config_json["quantization_config"])?;
        let copies = folder.join(COPIES);
        let text = std::fs::read(&copies).map_err(Error::read(&copies))?;
        let copies = serde_json::from_slice(&text).map_err(|error| Error::Malformed {
            path: copies,
            what: "JSON".into(),
            offset: None,
            expected: "what this version writes".into(),
            found: error.to_string(),
        })?;
        let store = Store::Packed(Safetensors::open_folder(folder)?, formats);
        let model = Self::new(folder.into(), store, config, Some(config_json));
        Self { copies: Some(copies), ..model }.checked()
    }

    fn open_embedded(name: &str) -> Result<Self> {
        let Some(model) = EMBEDDED.iter().find(|model| model.name == name) else {
            let names: Vec<_> =
                EMBEDDED.iter().map(|model| format!("embedded:{}", model.name)).collect();
            let why = match LEFT_OUT.contains(&name) {
                true => {
                    " (the published package has no more: a program built in a clone of the repository has this one)"
                }
                false => "",
            };
            return Err(Error::Argument {
                argument: "MODEL".into(),
                expected: format!("one of {}{why}", names.join(", ")),
                found: format!("embedded:{name}"),
            });
        };
        let path = PathBuf::from(format!("embedded:{name}"));
        let config_json = parse_object(&path.join("config.json"), model.config)?;
        let config = Config::from_json(&path.join("config.json"), &config_json)?;
        let source = Source::embedded(path.join("model.safetensors"), model.weights);
        let store = Store::Safetensors(Safetensors::open(source)?);
        let embedded = Some(model);
        Self { embedded, ..Self::new(path, store, config, Some(config_json)) }.checked()
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let mut gguf = Gguf::open_set(path)?;
        let (config, unknown) = Config::from_gguf(&gguf)?;
        take_experts_apart(&mut gguf, &config)?;
        let store = Store::Gguf(Box::new(gguf));
        let mut model = Self::new(path.into(), store, config, None);
        if !unknown.is_empty() {
            let (count, names) = (unknown.len(), listed(&unknown));
            model
                .notes
                .push(format!("this version knows nothing of {count} keys of this file: {names}"));
        }
        model.checked()
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = disk::read_json(&path, disk::SETTINGS)?;
        let config_json = parse_object(&path, &text)?;
        let mut config = Config::from_json(&path, &config_json)?;
        if let Some(readout) = config.readout.as_mut().filter(|readout| readout.labels.is_empty()) {
            modules::read(folder, readout)?;
        }
        if let Some(error) = without_weights(folder)? {
            return Err(error);
        }
        let tensors = Safetensors::open_folder(folder)?;
        let mut notes = tensors.notes().to_vec();
        let own =
            config_json.get("quantization_config").filter(|own| own["quant_method"] == "lopper");
        let plain = |tensors: Safetensors| match tensors.get(&embedding_name(&config)) {
            Some(_) => tensors,
            None => tensors.renamed(canonical),
        };
        let store = match (own, Quantization::of_folder(folder, &config_json)) {
            (Some(own), _) => Store::Packed(tensors, packed_formats(&path, own)?),
            (None, quantization) => match quantization? {
                None => Store::Safetensors(plain(tensors)),
                Some(quantization) => {
                    let specs = tensor_specs(&config);
                    let matrices = specs.iter().filter(|spec| !spec.is_plain());
                    let modules: Vec<Module<'_>> = matrices.map(quantizable).collect();
                    let quantized = quantization.open(plain(tensors), &modules)?;
                    notes.extend(quantized.notes());
                    notes.extend(take_input_rounding(&mut config, &quantized, &specs)?);
                    Store::Quantized(Box::new(quantized))
                }
            },
        };
        Self { notes, ..Self::new(folder.into(), store, config, Some(config_json)) }.checked()
    }

    /// Finds the tensors and compares every shape with the configuration, before anything is read.
    fn checked(mut self) -> Result<Self> {
        for spec in tensor_specs(&self.config) {
            let Some((shape, _)) = self.stored(&spec) else {
                if spec.optional {
                    continue;
                }
                return Err(self.wrong(
                    &spec,
                    format!("shape {:?}", spec.shape()),
                    "no such tensor",
                ));
            };
            if shape != spec.shape() {
                return Err(self.wrong(
                    &spec,
                    format!("shape {:?}", spec.shape()),
                    format!("shape {shape:?}"),
                ));
            }
            self.specs.push(spec);
        }
        let foreign = matches!(self.store, Store::Safetensors(_) | Store::Quantized(_));
        if let Some(json) = self.config_json.as_ref().filter(|_| foreign) {
            self.config.check_biases(&self.path, json, &self.specs)?;
        }
        let notes = self.unread()?;
        self.notes.extend(notes);
        Ok(self)
    }

    /// What to say of stored tensors that are none of the model's. Those that would change what it computes are refused, as
    /// llama.cpp refuses any in a GGUF file.
    fn unread(&self) -> Result<Vec<String>> {
        let (names, gguf): (Vec<&str>, bool) = match &self.store {
            Store::Safetensors(tensors) => (tensors.names().collect(), false),
            Store::Quantized(quantized) => (quantized.tensors().names().collect(), false),
            Store::Gguf(gguf) => (gguf.names().collect(), true),
            Store::Packed(..) => return Ok(vec![]), // all of them are Lopper's own
        };
        let read: HashSet<&str> = self
            .specs
            .iter()
            .map(|spec| if gguf { &spec.gguf } else { &spec.name }.as_str())
            .collect();
        // What stands beside weights: parts of quantized ones, NVFP4's scales of tensors.
        let parts: HashSet<String> = match &self.store {
            Store::Quantized(quantized) => {
                let weights = self.specs.iter().filter(|_| self.config.input_type.is_some());
                let scales = weights.map(|spec| input_scale_name(&spec.name));
                quantized.parts().map(str::to_string).chain(scales).collect()
            }
            _ => self.specs.iter().filter_map(|spec| self.scale_name(spec)).collect(),
        };
        let mut ignored = Vec::new();
        let mut notes = Vec::new();
        let mut activations = Vec::new();
        let names = names.into_iter().filter(|name| !read.contains(name) && !parts.contains(*name));
        for name in names {
            match unread(&self.config, name) {
                Unread::Harmless => {}
                _ if of_activations(name)
                    && matches!(self.store, Store::Quantized(_) | Store::Gguf(_)) =>
                {
                    activations.push(name);
                }
                Unread::Ignored if !gguf => ignored.push(name),
                // A tied head may be stored all the same.
                Unread::Changes if name == format!("{}.weight", head_name(&self.config)) => {
                    notes.extend(self.stored_head(name));
                }
                _ => {
                    return Err(Error::Tensor {
                        path: self.path.clone(),
                        tensor: name.into(),
                        expected: format!(
                            "no tensors but those of a {} of {} layers",
                            self.config.family.name,
                            self.config.layers()
                        ),
                        found: "one that would change what the model computes, and is not read"
                            .into(),
                    });
                }
            }
        }
        if !activations.is_empty() {
            let (count, names) = (activations.len(), listed(&activations));
            notes.push(format!(
                "{count} tensors say how activations are rounded, which is not done here: {names}"
            ));
        }
        if !ignored.is_empty() {
            let (count, names) = (ignored.len(), listed(&ignored));
            notes.push(format!(
                "{count} stored tensors are none of this model's and are not read: {names}"
            ));
        }
        Ok(notes)
    }

    /// A head beside `tie_word_embeddings`: no word of it if it is the embedding.
    fn stored_head(&self, name: &str) -> Option<String> {
        let tensors = match &self.store {
            Store::Safetensors(tensors) => tensors,
            Store::Quantized(quantized) => quantized.tensors(),
            _ => return None,
        };
        let [head, embedding] = [name, &embedding_name(&self.config)]
            .map(|name| tensors.get(name).and_then(|t| Some((t.ty, t.bytes().ok()?))));
        (head != embedding).then(|| {
            format!(
                "{name} is not the embedding, and is not read, because tie_word_embeddings is true"
            )
        })
    }

    /// What the user should know of the files, and does no harm.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn wrong(&self, spec: &TensorSpec, expected: String, found: impl Into<String>) -> Error {
        let tensor = if matches!(self.store, Store::Gguf(_)) { &spec.gguf } else { &spec.name };
        Error::Tensor {
            path: self.path.clone(),
            tensor: tensor.clone(),
            expected,
            found: found.into(),
        }
    }

    /// Shape and bytes of a tensor as it is stored.
    fn stored(&self, spec: &TensorSpec) -> Option<(Vec<usize>, u64)> {
        match &self.store {
            Store::Safetensors(tensors) => {
                tensors.get(&spec.name).map(|t| (t.shape.clone(), t.range.len() as u64))
            }
            Store::Gguf(gguf) => {
                gguf.tensor(&spec.gguf).map(|t| (t.shape.clone(), t.range.len() as u64))
            }
            Store::Quantized(quantized) => match quantized.stored_bytes(&spec.name) {
                Some(bytes) => Some((spec.shape(), bytes)),
                None => {
                    let plain = quantized.tensors().get(&spec.name);
                    plain.map(|t| (t.shape.clone(), t.range.len() as u64))
                }
            },
            Store::Packed(tensors, formats) => match formats.get(&spec.name) {
                None => tensors.get(&spec.name).map(|t| (t.shape.clone(), t.range.len() as u64)),
                Some(format) => {
                    let codes = tensors.get(&format!("{}.codes", spec.name))?;
                    let scales = tensors.get(&format!("{}.scales", spec.name));
                    let scales = scales.map_or(0, |t| t.range.len() as u64);
                    let all = codes.range.len() as u64 + scales;
                    // The words must be as many as the format makes of the configured shape.
                    let words = 4 * (spec.rows * format.scale_words_per_row(spec.columns)) as u64;
                    let fits = all == format.bytes(spec.rows, spec.columns) && scales == words;
                    let shape = if fits { spec.shape() } else { codes.shape.clone() };
                    Some((shape, all))
                }
            },
        }
    }

    /// Whether a norm's weight is stored without the part that its family adds. GGUF stores it whole.
    fn lacks_offset(&self, spec: &TensorSpec) -> bool {
        spec.offset != 0.0 && !matches!(self.store, Store::Gguf(_))
    }

    /// The path or `embedded:` name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that the weights come from; of an embedded model, its parts.
    pub fn sources(&self) -> Vec<&Source> {
        match &self.store {
            Store::Gguf(gguf) => gguf.sources().iter().collect(),
            Store::Safetensors(tensors) | Store::Packed(tensors, _) => {
                tensors.sources().iter().collect()
            }
            Store::Quantized(quantized) => quantized.tensors().sources().iter().collect(),
        }
    }

    /// An error that names a file of the weights that was shortened or written to since the model was opened.
    pub fn unchanged(&self) -> Result<()> {
        self.sources().into_iter().try_for_each(Source::unchanged)
    }

    /// Bytes of a tensor as it is stored.
    pub fn stored_bytes(&self, spec: &TensorSpec) -> u64 {
        self.stored(spec).map_or(0, |(_, bytes)| bytes)
    }

    /// Bytes of all tensors as they are stored.
    pub fn total_stored_bytes(&self) -> u64 {
        self.specs.iter().map(|spec| self.stored_bytes(spec)).sum()
    }

    /// Bytes of the files that the weights come from.
    pub fn file_bytes(&self) -> u64 {
        self.sources().iter().map(|source| source.length()).sum()
    }

    /// The GGUF type of the blocks that a copy of a tensor here has; `None` if this is no GGUF file.
    pub fn block_type(&self, copy: &CopyOf) -> Option<GgmlType> {
        let whole = self.specs.iter().find(|spec| spec.name == copy.tensor)?;
        self.gguf()?.tensor_type(&whole.gguf)
    }

    /// The GGUF type of a tensor; `None` if this is no GGUF file.
    fn gguf_type(&self, spec: &TensorSpec) -> Option<GgmlType> {
        self.gguf()?.tensor_type(&spec.gguf)
    }

    /// The name of the scale that a tensor of NVFP4 in a GGUF file may have beside it.
    fn scale_name(&self, spec: &TensorSpec) -> Option<String> {
        (self.gguf_type(spec) == Some(GgmlType::Nvfp4)).then(|| spec.gguf_scale())
    }

    /// The f32 that a tensor of NVFP4 is multiplied by; `None` where none stands beside it.
    pub fn tensor_scale(&self, spec: &TensorSpec) -> Result<Option<f32>> {
        let scale = self.scale_name(spec).and_then(|name| self.gguf()?.tensor(&name));
        let Some(scale) = scale else { return Ok(None) };
        let packed = scale.to_packed()?;
        let value = packed.value(0, 0);
        if packed.rows * packed.columns == 1 && value.is_finite() {
            return Ok(Some(value));
        }
        Err(Error::Tensor {
            path: self.path.clone(),
            tensor: spec.gguf_scale(),
            expected: "one finite number".into(),
            found: format!("{value}, of {} numbers", packed.rows * packed.columns),
        })
    }

    /// The blocks of `spec`, which is a copy of a tensor here, in GGUF's order of rows; `None` if this is no GGUF file.
    pub fn blocks(&self, copy: &CopyOf, spec: &TensorSpec) -> Result<Option<Vec<u8>>> {
        let whole = self.specs.iter().find(|spec| spec.name == copy.tensor);
        let tensor = whole.and_then(|whole| Some((whole, self.gguf()?.tensor(&whole.gguf)?)));
        let Some((whole, tensor)) = tensor else {
            return Ok(None);
        };
        let bytes = tensor.bytes()?;
        let Some(rows) = &copy.rows else {
            return Ok(Some(bytes.into_owned()));
        };
        let line = bytes.len() / whole.rows.max(1);
        // Of a row here its place there; of a row of Hugging Face's its place in this file.
        let (back, places) = (spec.hf_rows(spec.features()), whole.gguf_rows(whole.features()));
        let place = |row: usize| {
            let row = rows[back.as_ref().map_or(row, |back| back[row])];
            places.as_ref().map_or(row, |places| places[row])
        };
        let line = |row: usize| &bytes[place(row) * line..][..line];
        Ok(Some((0..spec.rows).flat_map(line).copied().collect()))
    }

    /// Weights in all, the head counted once where it is the embedding.
    pub fn parameters(&self) -> u64 {
        self.specs.iter().map(|spec| (spec.rows * spec.columns) as u64).sum()
    }

    /// `config.json` as found; of a GGUF file, one made from its metadata.
    pub fn config_json(&self) -> Result<Map<String, Value>> {
        match &self.config_json {
            Some(json) => Ok(json.clone()),
            None => {
                let mut json = self.config.to_json(&self.path, &self.specs)?;
                // Without these keys transformers takes ids of its own.
                for (key, name) in
                    [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")]
                {
                    let id = self
                        .gguf()
                        .and_then(|gguf| gguf.get(&format!("tokenizer.ggml.{name}_token_id")));
                    let id =
                        id.and_then(Meta::as_u64).filter(|id| *id < self.config.vocab_size as u64);
                    json.insert(key.into(), id.into());
                }
                Ok(json)
            }
        }
    }

    /// The GGUF file behind it, if it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.store {
            Store::Gguf(gguf) => Some(gguf),
            _ => None,
        }
    }

    /// The container's name: `safetensors`, `gguf` or `lopper`, or the method of another tool's quantized folder.
    pub fn container(&self) -> &'static str {
        match &self.store {
            Store::Safetensors(_) => "safetensors",
            Store::Packed(..) => "lopper",
            Store::Quantized(quantized) => quantized.method().name,
            Store::Gguf(_) => "gguf",
        }
    }

    /// The stored type's name of a tensor, for tables.
    pub fn stored_type(&self, spec: &TensorSpec) -> String {
        match &self.store {
            Store::Safetensors(tensors) => tensors.get(&spec.name).map(|t| t.ty),
            Store::Gguf(gguf) => gguf.tensor(&spec.gguf).map(|t| t.ty),
            Store::Quantized(quantized) => match quantized.stored_type(&spec.name) {
                Some(stored) => return stored,
                None => quantized.tensors().get(&spec.name).map(|t| t.ty),
            },
            Store::Packed(tensors, formats) => match formats.get(&spec.name) {
                Some(format) => return format.label(),
                None => tensors.get(&spec.name).map(|t| t.ty),
            },
        }
        .map_or_else(String::new, |ty: StoredType| ty.name().to_lowercase())
    }

    /// Whether the model comes with a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        match &self.store {
            Store::Gguf(gguf) => gguf.get("tokenizer.ggml.model").is_some(),
            _ => {
                let there = |name: &str| self.path.join(name).exists();
                self.embedded.is_some() || there("tokenizer.json") || there("spiece.model")
            }
        }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.stored_tokenizer()?.read()
    }

    /// What the model has of a tokenizer, not read: what is wrong with it is no matter to its weights.
    pub fn stored_tokenizer(&self) -> Result<StoredTokenizer> {
        if let Some(gguf) = self.gguf() {
            return Ok(StoredTokenizer::of_gguf(&self.path, gguf.metadata()));
        }
        let mut files = Vec::new();
        for &name in FILES {
            let path = self.path.join(name);
            let bytes = match self.embedded {
                Some(model) => model.file(name).map(<[u8]>::to_vec),
                None if path.exists() => Some(disk::read_json(&path, disk::TOKENIZER)?),
                None => None,
            };
            files.extend(bytes.map(|bytes| (name, bytes)));
        }
        Ok(StoredTokenizer::of_folder(&self.path, files))
    }
}

impl Weights for Checkpoint {
    fn config(&self) -> &Config {
        &self.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let missing = || self.wrong(spec, format!("shape {:?}", spec.shape()), "no such tensor");
        let packed = match &self.store {
            Store::Safetensors(tensors) => {
                tensors.get(&spec.name).ok_or_else(missing)?.to_packed()?
            }
            Store::Gguf(gguf) => {
                let mut packed = gguf.tensor(&spec.gguf).ok_or_else(missing)?.to_packed()?;
                if let Some(scale) = self.tensor_scale(spec)? {
                    (0..packed.rows).for_each(|row| packed.set_row_scale(row, scale));
                }
                from_gguf_order(packed, spec)
            }
            Store::Quantized(quantized) => match quantized.load(&spec.name) {
                Some(packed) => packed?,
                None => quantized.tensors().get(&spec.name).ok_or_else(missing)?.to_packed()?,
            },
            Store::Packed(tensors, formats) => match formats.get(&spec.name) {
                None => tensors.get(&spec.name).ok_or_else(missing)?.to_packed()?,
                Some(format) => {
                    let words = |suffix: &str| -> Result<Vec<u32>> {
                        let tensor = tensors.get(&format!("{}.{suffix}", spec.name));
                        let bytes = tensor.map(|tensor| tensor.bytes()).transpose()?;
                        Ok(bytes.map_or_else(Vec::new, |b| bytemuck::pod_collect_to_vec(&b)))
                    };
                    let (rows, columns) = (spec.rows, spec.columns);
                    let packed = Packed {
                        format: *format,
                        rows,
                        columns,
                        codes: words("codes")?,
                        scales: words("scales")?,
                    };
                    let fits = packed.codes.len() == rows * format.code_words_per_row(columns)
                        && packed.scales.len() == rows * format.scale_words_per_row(columns);
                    if !fits {
                        return Err(self.wrong(
                            spec,
                            format!("words of {}", format.label()),
                            "another number",
                        ));
                    }
                    if let (Some(pattern), Some((row, column))) =
                        (format.ty.sparsity, packed.first_overfull())
                    {
                        let expected = format!(
                            "at most {} of every {} columns kept, of {columns}",
                            pattern.kept, pattern.of
                        );
                        let found = format!("one more at row {row}, column {column}");
                        return Err(self.wrong(spec, expected, found));
                    }
                    packed
                }
            },
        };
        match packed.first_non_finite() {
            None if self.lacks_offset(spec) => {
                let values: Vec<f32> = packed.to_f32().iter().map(|v| v + spec.offset).collect();
                Ok(Packed::from_f32(&values, spec.rows, spec.columns))
            }
            None => Ok(packed),
            Some((row, column)) => {
                let found = format!("{} at row {row}, column {column}", packed.value(row, column));
                Err(self.wrong(spec, "finite values".into(), found))
            }
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        if self.lacks_offset(spec) {
            return Ok(WeightFormat::f32());
        }
        let ty = match &self.store {
            Store::Quantized(quantized) => match quantized.format(&spec.name) {
                Some(format) => return Ok(format),
                None => quantized.tensors().get(&spec.name).map(|tensor| tensor.ty),
            },
            Store::Packed(tensors, formats) => match formats.get(&spec.name) {
                Some(format) => return Ok(*format),
                None => tensors.get(&spec.name).map(|tensor| tensor.ty),
            },
            Store::Safetensors(tensors) => tensors.get(&spec.name).map(|tensor| tensor.ty),
            Store::Gguf(gguf) => gguf.tensor(&spec.gguf).map(|tensor| tensor.ty),
        };
        ty.and_then(StoredType::weight_format).ok_or_else(|| {
            let found = ty.map_or("nothing".to_string(), |ty| ty.name().to_string());
            self.wrong(spec, "a float type or a block type with a decoder".into(), found)
        })
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        match &self.copies {
            Some(copies) => copies.get(&spec.name).cloned(),
            None => Some(CopyOf { tensor: spec.name.clone(), rows: None }),
        }
    }
}

/// Takes a GGUF file's tensors of all experts apart: here every expert has its own.
fn take_experts_apart(gguf: &mut Gguf, config: &Config) -> Result<()> {
    let mut stacks: Vec<(String, Vec<String>)> = Vec::new();
    for spec in tensor_specs(config) {
        let Some(stack) = spec.gguf_stack() else { continue };
        match stacks.iter_mut().rev().find(|(name, _)| *name == stack) {
            Some((_, parts)) => parts.push(spec.gguf),
            None => stacks.push((stack, vec![spec.gguf])),
        }
    }
    stacks.iter().try_for_each(|(stack, parts)| gguf.take_apart(stack, parts))
}

/// Takes over how a folder of another tool rounds the inputs of its quantized layers; the answer says what of it is not done.
///
/// Layers that share their inputs have one scale here, and where theirs differ the largest: so vLLM does with layers that it joins.
fn take_input_rounding(
    config: &mut Config,
    quantized: &Quantized,
    specs: &[TensorSpec],
) -> Result<Option<String>> {
    let Some(Inputs { ty, stored }) = quantized.inputs() else { return Ok(None) };
    if !stored {
        config.input_type = Some(ty);
        return Ok(None);
    }
    let mut all = vec![[0.0f32; 4]; config.layers()];
    for spec in specs.iter().filter(|spec| spec.role == Role::Linear) {
        let Some(layer) = spec.layer.filter(|_| quantized.format(&spec.name).is_some()) else {
            continue;
        };
        let Some(place) = input_place(spec.slot) else {
            return Ok(Some(
                "the quantization rounds inputs by stored scales, which this version does for plain decoders; here they stay as they are"
                    .into(),
            ));
        };
        let scale = &mut all[layer][place];
        *scale = scale.max(quantized.input_scale(&spec.name)?);
    }
    for (block, mut scales) in config.blocks.iter_mut().zip(all) {
        // Those of layers that are not quantized, whose inputs are not rounded.
        scales.iter_mut().filter(|scale| **scale == 0.0).for_each(|scale| *scale = 1.0);
        block.input_scales = Some(scales);
    }
    config.input_type = Some(ty);
    Ok(None)
}

/// A weight as another tool's methods know it.
pub(super) fn quantizable(spec: &TensorSpec) -> Module<'_> {
    let embedding = spec.role == Role::Embedding;
    Module { name: spec.module(), rows: spec.rows, columns: spec.columns, embedding }
}

/// A tensor as GGUF orders its rows, in Hugging Face's order.
fn from_gguf_order(packed: Packed, spec: &TensorSpec) -> Packed {
    permuted(packed, spec, spec.gguf_rows(spec.features()))
}

/// A tensor in Hugging Face's order, as GGUF orders its rows.
pub(super) fn to_gguf_order(packed: Packed, spec: &TensorSpec) -> Packed {
    permuted(packed, spec, spec.hf_rows(spec.features()))
}

fn permuted(packed: Packed, spec: &TensorSpec, order: Option<Vec<usize>>) -> Packed {
    let Some(order) = order else { return packed };
    if spec.role != Role::Bias {
        return packed.permute_rows(&order[..spec.rows]);
    }
    // A bias is one row here; its values are what the rows of its weight are.
    let values = packed.to_f32();
    let values: Vec<f32> = order[..spec.columns].iter().map(|&place| values[place]).collect();
    Packed::from_f32(&values, 1, spec.columns)
}

fn parse_object(path: &Path, text: &[u8]) -> Result<Map<String, Value>> {
    let wrong = |found: String| Error::Malformed {
        path: path.into(),
        what: "JSON".into(),
        offset: None,
        expected: "an object".into(),
        found,
    };
    let no_json = |error: &dyn std::fmt::Display| {
        foreign(path, text).unwrap_or_else(|| wrong(error.to_string()))
    };
    match json::lenient(text).map_err(|error| no_json(&error))? {
        Value::Object(object) => Ok(object),
        _ => Err(wrong("another value".into())),
    }
}

/// The first of some names from a file.
fn listed(names: &[impl AsRef<str>]) -> String {
    let mut shown_names: Vec<String> =
        names.iter().take(4).map(|name| shown(name.as_ref()).to_string()).collect();
    if names.len() > shown_names.len() {
        shown_names.push("…".into());
    }
    shown_names.join(", ")
}
