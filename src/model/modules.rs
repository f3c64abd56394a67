//! What sentence-transformers keeps beside a sentence encoder: `modules.json`, which says what stands behind the model, and the settings
//! of its pooling (github.com/UKPLab/sentence-transformers). Modules that are not known here would change embeddings and are refused by
//! name.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::data::Pooling;
use crate::disk;
use crate::error::{Error, Result};
use crate::families::Readout;

/// The list of modules, in a model's folder.
const MODULES: &str = "modules.json";
/// Where sentence-transformers itself puts the settings of a pooling.
const POOLING: &str = "1_Pooling";
const NORMALIZE: &str = "2_Normalize";
const SETTINGS: &str = "config.json";
/// What the names of modules begin with.
const PREFIX: &str = "sentence_transformers.models.";
/// What keys begin with that switch a kind of pooling on.
const SWITCH: &str = "pooling_mode_";

/// The kinds of pooling: in newer files, and the ends of the older keys.
static KINDS: &[(Pooling, &str, &str)] = &[
    (Pooling::First, "cls", "cls_token"),
    (Pooling::Mean, "mean", "mean_tokens"),
    (Pooling::Max, "max", "max_tokens"),
];

/// Reads what a folder says of how its model's states become an embedding; nothing where it has no list of modules.
pub(super) fn read(folder: &Path, readout: &mut Readout) -> Result<()> {
    let path = folder.join(MODULES);
    if !path.exists() {
        return Ok(());
    }
    let list: Value = parsed(&path)?;
    let wrong = |found: &Value| malformed(&path, "a list of modules with type and path", found);
    let (mut pooling, mut normalized) = (None, false);
    for module in list.as_array().ok_or_else(|| wrong(&list))? {
        let kind = module["type"].as_str().ok_or_else(|| wrong(module))?;
        match (kind.rsplit('.').next().unwrap_or_default(), pooling) {
            ("Transformer", None) => {}
            ("Pooling", None) => {
                let part = module["path"].as_str().ok_or_else(|| wrong(module))?;
                pooling = Some(pooling_of(&inside(folder, part, &path)?.join(SETTINGS))?);
            }
            ("Normalize", Some(_)) => normalized = true,
            (other, _) => {
                return Err(Error::Unsupported {
                    path: path.clone(),
                    what: format!("the module {other} at this place"),
                    why: "known are Transformer, behind it Pooling, and behind that Normalize"
                        .into(),
                });
            }
        }
    }
    let Some(pooling) = pooling else {
        return Err(malformed(&path, "a module of the type Pooling", &list));
    };
    *readout = Readout { pooling, labels: Vec::new(), normalized };
    Ok(())
}

/// Writes it, for a model whose states become embeddings.
pub(super) fn write(folder: &Path, readout: &Readout, width: usize) -> Result<()> {
    let module = |place: usize, part: &str, kind: &str| json!({"idx": place, "name": place.to_string(), "path": part, "type": format!("{PREFIX}{kind}")});
    let mut list = vec![module(0, "", "Transformer"), module(1, POOLING, "Pooling")];
    if readout.normalized {
        list.push(module(2, NORMALIZE, "Normalize"));
    }
    let mut settings = Map::from_iter([("word_embedding_dimension".to_string(), json!(width))]);
    for (pooling, _, key) in KINDS {
        settings.insert(format!("{SWITCH}{key}"), json!(*pooling == readout.pooling));
    }
    let part = folder.join(POOLING);
    std::fs::create_dir_all(&part).map_err(Error::write(&part))?;
    for (path, value) in
        [(folder.join(MODULES), json!(list)), (part.join(SETTINGS), json!(settings))]
    {
        std::fs::write(&path, format!("{value:#}\n")).map_err(Error::write(&path))?;
    }
    Ok(())
}

/// The kind of pooling that settings switch on.
fn pooling_of(path: &Path) -> Result<Pooling> {
    let settings: Value = parsed(path)?;
    let wrong = |found: &Value| malformed(path, "an object of settings of a pooling", found);
    let object = settings.as_object().ok_or_else(|| wrong(&settings))?;
    let switched = object.iter().filter(|(_, value)| value.as_bool() == Some(true));
    let mut asked: Vec<&str> = switched.filter_map(|(key, _)| key.strip_prefix(SWITCH)).collect();
    asked.extend(object.get("pooling_mode").and_then(Value::as_str));
    let known = |asked: &str| KINDS.iter().find(|(_, new, old)| [*new, *old].contains(&asked));
    match asked[..] {
        [one] if known(one).is_some() => Ok(known(one).expect("it is known").0),
        [] => Err(wrong(&settings)),
        _ => Err(Error::Unsupported {
            path: path.into(),
            what: format!("pooling by {}", asked.join(" and ")),
            why: "known are cls_token, mean_tokens and max_tokens, one at a time".into(),
        }),
    }
}

/// A folder within a model's, by its name in a file.
fn inside(folder: &Path, part: &str, path: &Path) -> Result<PathBuf> {
    let part = Path::new(part);
    let plain = part.components().all(|component| matches!(component, Component::Normal(_)));
    match plain {
        true => Ok(folder.join(part)),
        false => Err(malformed(path, "a path within the model's folder", &json!(part))),
    }
}

fn parsed(path: &Path) -> Result<Value> {
    let text = disk::read_json(path, disk::SETTINGS)?;
    serde_json::from_slice(&text).map_err(|error| Error::Malformed {
        path: path.into(),
        what: "JSON".into(),
        offset: None,
        expected: "a value".into(),
        found: error.to_string(),
    })
}

fn malformed(path: &Path, expected: &str, found: &Value) -> Error {
    let shown: String = found.to_string().chars().take(80).collect();
    Error::Malformed {
        path: path.into(),
        what: "settings of a sentence encoder".into(),
        offset: None,
        expected: expected.into(),
        found: shown,
    }
}
