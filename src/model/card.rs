//! Model cards: the README.md of a folder that is written, with the front matter by which hubs sort models.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::export::ExportFormat;
use crate::disk;
use crate::error::{Error, Result};
use crate::families::Config;

/// A card's file.
pub const CARD_FILE: &str = "README.md";

/// What a card says of a model that was made of another.
pub struct Card<'a> {
    /// The model it was made of: what its own card or configuration says of names and licences holds of this one too.
    pub parent: &'a Checkpoint,
    /// Further models that it was made of.
    pub merged: Vec<&'a Checkpoint>,
    /// The configuration of what was made.
    pub config: &'a Config,
    /// What the folder holds.
    pub formats: &'a [ExportFormat],
    /// What it is to its base model, in the words of Hugging Face's hub; `None` for the same weights.
    pub relation: Option<&'static str>,
    /// Tags beside those of the formats.
    pub tags: Vec<String>,
    /// The text below, in Markdown.
    pub text: String,
}

impl Card<'_> {
    /// Writes it into a folder, unless a card is there.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(CARD_FILE);
        let text = format!("---\n{}---\n\n{}", self.front_matter()?, self.text);
        match File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes())) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            written => written.map_err(Error::write(&path)),
        }
    }

    fn front_matter(&self) -> Result<String> {
        let known = Known::of(self.parent)?;
        let library = match self.formats {
            [ExportFormat::Gguf] => "gguf",
            [ExportFormat::Packed] => "lopper",
            [ExportFormat::Mlx] => "mlx",
            _ => "transformers",
        };
        let mut bases: Vec<String> = known.base_model.iter().cloned().collect();
        for other in &self.merged {
            let name = Known::of(other)?.base_model;
            bases.extend(name.filter(|name| !bases.contains(name)));
        }
        // A text in JSON is one in YAML.
        let quoted = |text: &str| Value::from(text).to_string();
        let mut lines = match &bases[..] {
            [] => String::new(),
            [one] => format!("base_model: {}\n", quoted(one)),
            several => {
                let items = several.iter().map(|name| format!("- {}\n", quoted(name)));
                format!("base_model:\n{}", items.collect::<String>())
            }
        };
        let mut put = |key: &str, value: Option<&str>| {
            lines.extend(value.map(|value| format!("{key}: {}\n", quoted(value))));
        };
        put("base_model_relation", self.relation.filter(|_| !bases.is_empty()));
        known.license.iter().for_each(|(key, value)| put(key, Some(value)));
        put("library_name", Some(library));
        put("pipeline_tag", Some(self.config.task()));
        let formats = self.formats.iter().map(|format| format.name().to_string());
        let mut tags: Vec<String> =
            ["lopper".to_string()].into_iter().chain(formats).chain(self.tags.clone()).collect();
        let mut seen = std::collections::HashSet::new();
        tags.retain(|tag| seen.insert(tag.clone()));
        lines.push_str("tags:\n");
        tags.iter().for_each(|tag| lines.push_str(&format!("- {}\n", Value::from(tag.as_str()))));
        Ok(lines)
    }
}

/// Text between fences that it does not close.
pub fn fenced(kind: &str, text: &str) -> String {
    let ticks = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat((ticks + 1).max(3));
    format!("{fence}{kind}\n{}\n{fence}\n", text.trim_end())
}

/// What a parent says of itself.
#[derive(Default)]
struct Known {
    base_model: Option<String>,
    /// `license`, and what belongs to it.
    license: Vec<(&'static str, String)>,
}

/// Keys of a card that say under which terms a model may be used.
const LICENSE_KEYS: [&str; 3] = ["license", "license_name", "license_link"];

impl Known {
    /// A model's name on the hub is in its configuration, or else its own base model's is in its card.
    fn of(parent: &Checkpoint) -> Result<Self> {
        let config = parent.config_json()?;
        let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_string);
        let meta = |key: &str| {
            let value = parent.gguf().and_then(|gguf| gguf.get(key));
            value.and_then(|value| value.as_str()).map(str::to_string)
        };
        let path = parent.path().join(CARD_FILE);
        let card = match path.is_file() {
            true => String::from_utf8_lossy(&disk::read(&path, disk::SETTINGS)?).into_owned(),
            false => String::new(),
        };
        let said = |key: &str| stated(&card, key);
        let base_model = text("_name_or_path").filter(|name| is_hub_name(name));
        let mut license = Vec::new();
        for key in LICENSE_KEYS {
            let other = || {
                if key == "license" { text(key).or_else(|| meta("general.license")) } else { None }
            };
            license.extend(said(key).or_else(other).map(|value| (key, value)));
        }
        let base_model = base_model.or_else(|| said("base_model").filter(|name| is_hub_name(name)));
        Ok(Self { base_model, license })
    }
}

/// The text of a key at the top of a card's front matter, the first of a list.
fn stated(card: &str, key: &str) -> Option<String> {
    let mut lines = card.lines().skip_while(|line| line.trim().is_empty());
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let mut lines = lines.take_while(|line| line.trim_end() != "---");
    let value = lines.find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
    let mut first = || lines.next()?.trim_start().strip_prefix("- ");
    let value = if value.trim().is_empty() { first()? } else { value };
    let value = value.trim().trim_matches(['"', '\'']).to_string();
    (!value.is_empty()).then_some(value)
}

/// Whether a name is one of the hub, not a folder's: `ORG/NAME`.
fn is_hub_name(name: &str) -> bool {
    let plain = |part: &str| {
        let character = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(character) && !part.starts_with('.')
    };
    name.split_once('/').is_some_and(|(group, name)| plain(group) && plain(name))
}
