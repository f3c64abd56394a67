//! Finds the model in what the user names, and says what stands there where none does.

use std::path::{Path, PathBuf};

use super::embedded::EMBEDDED;
use crate::error::{Error, Result};
use crate::formats::safetensors::{INDEX_FILE, SINGLE_FILE};

/// Where a model is.
pub(super) enum Place {
    /// A folder with `config.json` and safetensors files.
    Folder(PathBuf),
    /// A GGUF file, perhaps the first of several.
    File(PathBuf),
}

fn misplaced(path: &Path, found: impl Into<String>, advice: impl Into<String>) -> Error {
    Error::Misplaced { path: path.into(), found: found.into(), advice: advice.into() }
}

/// The place of `MODEL`. What is wrong with a file's contents is found by who reads it.
pub(super) fn locate(model: &str) -> Result<Place> {
    let path = Path::new(model);
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(absent(model, error)),
        Err(error) => Err(Error::read(path)(error)),
        Ok(about) if about.is_dir() => folder(path),
        Ok(_) => file(path),
    }
}

/// Nothing has this name: it may be that of a model elsewhere.
fn absent(model: &str, error: std::io::Error) -> Error {
    let path = Path::new(model);
    if EMBEDDED.iter().any(|known| known.name == model) {
        return misplaced(
            path,
            "no such file or folder",
            format!("the embedded model is embedded:{model}"),
        );
    }
    let plain = |part: &str| {
        let character = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(character) && !part.starts_with('.')
    };
    let is_file = path.extension().is_some_and(|end| {
        ["gguf", "safetensors", "bin", "json"].iter().any(|known| end == *known)
    });
    match model.split_once('/') {
        Some((group, name))
            if plain(group) && plain(name) && !is_file && !Path::new(group).exists() =>
        {
            misplaced(
                path,
                "no such file or folder",
                format!(
                    "if this is a model's name on the Hugging Face hub, run `hf download {model} --local-dir {name}` and give {name}"
                ),
            )
        }
        _ => Error::read(path)(error),
    }
}

/// A file: all but one of a Hugging Face folder is left to the reader of GGUF.
fn file(path: &Path) -> Result<Place> {
    let ends = |end: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(end));
    let beside = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let whole = beside.join("config.json").is_file();
    if ends("safetensors") || ends("json") {
        let found = "is one file of a model's folder";
        let advice = match whole {
            true => format!("give the folder, {}", beside.display()),
            false => "give a folder with config.json and tokenizer.json beside the weights".into(),
        };
        return Err(misplaced(path, found, advice));
    }
    Ok(Place::File(path.into()))
}

fn folder(path: &Path) -> Result<Place> {
    if path.join("config.json").exists() {
        return Ok(Place::Folder(path.into()));
    }
    let listing = Listing::of(path)?;
    // What Lopper writes: the same model up to three times, as it is first.
    if path.join("manifest.json").exists() {
        for part in ["packed", "hf"] {
            if path.join(part).join("config.json").exists() {
                return Ok(Place::Folder(path.join(part)));
            }
        }
        if let Some(name) = listing.models().next() {
            return Ok(Place::File(path.join(name)));
        }
    }
    let (found, advice) = if listing.0.is_empty() {
        ("is an empty folder".into(), "give a folder with config.json, or a .gguf file".into())
    } else if let Some(name) = listing.models().next() {
        (
            "is a folder of GGUF files".into(),
            format!("give one of them, as {}", path.join(name).display()),
        )
    } else if listing.any(|name| name.starts_with("consolidated") || name == "params.json") {
        let found = "holds weights in their makers' own layout (consolidated, params.json)";
        (found.into(), "download the same model in Hugging Face's layout, with config.json".into())
    } else if listing.any(|name| name == "adapter_config.json") {
        (
            "is an adapter (LoRA), not a model".into(),
            "merge it into its model first (peft: merge_and_unload, save_pretrained)".into(),
        )
    } else if let Some(inner) = listing.inner(path) {
        ("has no config.json".into(), format!("a model is in {}", inner.display()))
    } else {
        let found = format!("has no config.json, and no .gguf file; it holds {}", listing.shown());
        (found, "give a model's folder, or a .gguf file".into())
    };
    Err(misplaced(path, found, advice))
}

/// What to say of a folder with `config.json` and without the weights that are looked for; `None` if they are there.
pub(super) fn without_weights(path: &Path) -> Result<Option<Error>> {
    if path.join(SINGLE_FILE).exists() || path.join(INDEX_FILE).exists() {
        return Ok(None);
    }
    let listing = Listing::of(path)?;
    let ends = |end: &'static str| move |name: &str| name.ends_with(end);
    let (found, advice) = if listing
        .any(|name| name.starts_with("model-0") && name.ends_with(".safetensors"))
    {
        let found = format!("has shards and no {INDEX_FILE}");
        (found, "download that file too: it says which tensors are where".to_string())
    } else if listing.any(|name| name.starts_with("consolidated")) {
        let found = "holds weights in their makers' own layout (consolidated)".into();
        (found, format!("download {SINGLE_FILE}, or the shards with {INDEX_FILE}"))
    } else if let Some(name) = listing.models().next() {
        (
            "has GGUF files beside config.json".into(),
            format!("give one of them, as {}", path.join(name).display()),
        )
    } else if let Some(name) = listing.0.iter().find(|name| name.ends_with(".safetensors")) {
        let found = format!("has {name} and no {SINGLE_FILE}");
        (found, format!("if that is all of the model's weights, name it {SINGLE_FILE}"))
    } else if listing.any(|name| [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end))) {
        let found = "has PyTorch's .bin weights only".into();
        (
            found,
            "convert them to safetensors with transformers (from_pretrained, then save_pretrained)"
                .into(),
        )
    } else if listing.any(ends(".h5")) || listing.any(ends(".msgpack")) {
        let found = "has weights for TensorFlow or Flax only".into();
        (found, "download the safetensors files".into())
    } else {
        let found = format!("has no {SINGLE_FILE}; it holds {}", listing.shown());
        (found, "download the weights into this folder".into())
    };
    Ok(Some(misplaced(path, found, advice)))
}

/// The names in a folder, sorted.
struct Listing(Vec<String>);

impl Listing {
    fn of(path: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(path).map_err(Error::read(path))?;
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(Self(names))
    }

    fn any(&self, is: impl Fn(&str) -> bool) -> bool {
        self.0.iter().any(|name| is(name))
    }

    /// GGUF files that are models by themselves: of a split one, the first.
    fn models(&self) -> impl Iterator<Item = &str> {
        let part = |name: &&str| {
            let stem = name.trim_end_matches(".gguf").rsplit_once("-of-");
            stem.is_some_and(|(before, _)| before.len() > 6 && !before.ends_with("-00001"))
        };
        let names = self.0.iter().map(String::as_str);
        names.filter(|name| name.ends_with(".gguf")).filter(move |name| !part(name))
    }

    /// A folder below that has a `config.json`, such as a hub's cache has two folders down.
    fn inner(&self, path: &Path) -> Option<PathBuf> {
        let below = |folder: &Path| Listing::of(folder).map_or(Vec::new(), |listing| listing.0);
        let has = |folder: &PathBuf| folder.join("config.json").is_file();
        self.0.iter().map(|name| path.join(name)).filter(|inner| inner.is_dir()).find_map(|inner| {
            if has(&inner) {
                return Some(inner);
            }
            below(&inner).iter().map(|name| inner.join(name)).find(has)
        })
    }

    fn shown(&self) -> String {
        let mut names: Vec<&str> = self.0.iter().take(6).map(String::as_str).collect();
        if self.0.len() > names.len() {
            names.push("…");
        }
        names.join(", ")
    }
}
