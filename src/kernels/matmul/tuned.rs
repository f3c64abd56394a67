//! The winners that tuning found on a device, by class of product, as they are kept in the user's cache directory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::product::Winners;
use crate::disk::{self, Kind, replace_file};
use crate::error::{Error, Result};
use crate::gpu::{Adapter, backend_name};

/// The file's contents: winners by device.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    devices: BTreeMap<String, Winners>,
}

/// The file: `$LOPPER_CACHE/tuned.json`, or in the system's place for caches. `None` where the system names none.
pub fn path() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = variable("LOPPER_CACHE").map(PathBuf::from).or_else(|| {
        let system = if cfg!(windows) {
            variable("LOCALAPPDATA").map(PathBuf::from)
        } else if cfg!(target_os = "macos") {
            variable("HOME").map(|home| PathBuf::from(home).join("Library/Caches"))
        } else {
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
            cache.or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".cache")))
        };
        system.map(|folder| folder.join("lopper"))
    })?;
    Some(folder.join("tuned.json"))
}

/// The key of one device's winners: adapter, backend, driver and Lopper's version.
pub fn key(adapter: &Adapter) -> String {
    format!(
        "{} | {} | {} | {}",
        adapter.info.name,
        backend_name(adapter.info.backend),
        adapter.driver(),
        env!("CARGO_PKG_VERSION")
    )
}

fn read() -> Result<Option<(PathBuf, File)>> {
    let Some(path) = path() else {
        return Ok(None);
    };
    if matches!(Kind::of(&path), Ok(Kind::Missing)) {
        return Ok(Some((path, File::default())));
    }
    let text = disk::read_json(&path, disk::LIST)?;
    match serde_json::from_slice(&text) {
        Ok(file) => Ok(Some((path, file))),
        Err(error) => Err(Error::Malformed {
            path,
            what: "table of tuned kernels".into(),
            offset: None,
            expected: "what tune-device writes; remove the file to start anew".into(),
            found: error.to_string(),
        }),
    }
}

/// The winners kept for a device; none where it was not tuned.
pub fn load(adapter: &Adapter) -> Result<Winners> {
    let file = read()?;
    Ok(file.and_then(|(_, mut file)| file.devices.remove(&key(adapter))).unwrap_or_default())
}

/// Adds winners to those kept for a device. Returns the file; `None` where the system has no place for caches.
pub fn store(adapter: &Adapter, winners: Winners) -> Result<Option<PathBuf>> {
    let Some((path, mut file)) = read()? else {
        return Ok(None);
    };
    file.devices.entry(key(adapter)).or_default().extend(winners);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::write(folder))?;
    }
    replace_file(&path, |out| {
        serde_json::to_writer_pretty(out, &file).map_err(|error| Error::write(&path)(error.into()))
    })?;
    Ok(Some(path))
}
