//! Calibration and evaluation text, and its cutting into windows of tokens.

use std::path::Path;

use crate::error::{Error, Result};

/// Texts that are part of the program: speeches in the public domain.
pub static TEXTS: &[(&str, &str)] = &[
    (
        "calibration",
        include_str!("../assets/text/calibration.txt"),
    ),
    (
        "heldout-2026",
        include_str!("../assets/text/heldout-2026.txt"),
    ),
    (
        "heldout-older",
        include_str!("../assets/text/heldout-older.txt"),
    ),
];

/// The text of a file, or of `embedded:NAME`.
pub fn read_text(source: &str) -> Result<String> {
    if let Some(name) = source.strip_prefix("embedded:") {
        let found = TEXTS.iter().find(|(known, _)| *known == name);
        return found.map(|(_, text)| text.to_string()).ok_or_else(|| {
            let names: Vec<_> = TEXTS
                .iter()
                .map(|(name, _)| format!("embedded:{name}"))
                .collect();
            Error::Argument {
                argument: "text".into(),
                expected: names.join(", "),
                found: source.into(),
            }
        });
    }
    let path = Path::new(source);
    let bytes = std::fs::read(path).map_err(Error::read(path))?;
    String::from_utf8(bytes).map_err(|error| Error::Malformed {
        path: path.into(),
        what: "text".into(),
        offset: Some(error.utf8_error().valid_up_to() as u64),
        expected: "UTF-8".into(),
        found: "another byte".into(),
    })
}

/// Non-overlapping windows of `ctx` tokens; the last partial one is dropped.
pub fn windows(tokens: &[u32], ctx: usize) -> Vec<&[u32]> {
    tokens.chunks_exact(ctx).collect()
}
