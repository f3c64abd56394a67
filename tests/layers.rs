//! The house's rules: who may import whom, who may print, how large files grow.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use libtest_mimic::{Failed, Trial};

/// Modules from what knows most to what knows least. A module may import those after it, never those before.
const ORDER: &[&str] = &[
    "main",
    "cli",
    "run",
    "plan",
    "recipe",
    "stages",
    "methods",
    "measure",
    "model",
    "autograd",
    "kernels",
    "device",
    "compare",
    "gpu",
    "text",
    "data",
    "formats",
    "tensor",
    "interrupt",
    "error",
];

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("layers::imports_point_down", imports_point_down),
        Trial::test("layers::only_cli_prints", only_cli_prints),
        Trial::test(
            "layers::gpu_knows_no_maths_and_methods_no_wgpu",
            who_knows_wgpu,
        ),
        Trial::test("layers::size_is_a_feature", size_is_a_feature),
        Trial::test("layers::folders_are_shallow", folders_are_shallow),
    ]
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has sources");
    found
}

/// `src/gpu/buffer.rs` -> `gpu`
fn module(path: &Path) -> String {
    let relative = path.strip_prefix("src").unwrap_or(path);
    let first = relative
        .components()
        .next()
        .map(|part| part.as_os_str().to_string_lossy().into_owned());
    first
        .unwrap_or_default()
        .trim_end_matches(".rs")
        .to_string()
}

fn imports_point_down() -> Result<(), Failed> {
    let place = |name: &str| ORDER.iter().position(|known| *known == name);
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let own = module(&path);
        if own == "lib" {
            continue;
        }
        let Some(own_place) = place(&own) else {
            wrong.push(format!(
                "{}: module {own} is not in the list",
                path.display()
            ));
            continue;
        };
        for line in text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            for part in line.split("crate::").skip(1) {
                let name: String = part
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                match place(&name) {
                    Some(there) if there >= own_place => {}
                    _ => wrong.push(format!("{}: {}", path.display(), line.trim())),
                }
            }
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n").into())
    }
}

fn only_cli_prints() -> Result<(), Failed> {
    let prints = [
        "println!",
        "eprintln!",
        "print!(",
        "eprint!(",
        "stdout()",
        "stderr()",
        "dbg!",
    ];
    for (path, text) in sources("src") {
        if module(&path) == "cli" {
            continue;
        }
        if let Some(what) = prints.iter().find(|what| text.contains(**what)) {
            return Err(format!("{} has {what}", path.display()).into());
        }
    }
    Ok(())
}

fn who_knows_wgpu() -> Result<(), Failed> {
    for (path, text) in sources("src") {
        let own = module(&path);
        let knows = text.contains("wgpu::");
        if knows && !["gpu", "cli"].contains(&own.as_str()) {
            return Err(format!("{} uses wgpu", path.display()).into());
        }
    }
    Ok(())
}

fn size_is_a_feature() -> Result<(), Failed> {
    let mut lines = BTreeMap::new();
    for folder in ["src", "tests", "benches"] {
        if Path::new(folder).is_dir() && (folder != "benches") {
            for (path, text) in sources(folder) {
                lines.insert(path, text.lines().count());
            }
        }
    }
    let long: Vec<_> = lines.iter().filter(|(_, count)| **count > 500).collect();
    let total: usize = lines.values().sum();
    // Raised with a reason only: what a change adds should be worth reading. 33 000: eight kernels of the products' family,
    // each with its reference and cases, their planner, its tuning and its table by weight type; attention of many tokens.
    // 36 000: a context of our own for OpenGL ES, backward products, products by lookup with their layout and their tables.
    // 40 000: tasks, that is the layouts of a dozen published ones, examples, scoring in batches, and their tests.
    // 45 000: figures of a child beside its parent, intervals, comparisons of answers and the files that these come from;
    // lookup in tables of bytes and for four tokens, ternary lookup.
    // 48 500: backward kernels of attention, normalization, gate, cross-entropy and embedding, and the tape that strings them.
    // 50 500: kernels of importance and of structured pruning: scores, selections, masks, smaller matrices.
    // 57 000: layers of unlike widths and the files that state them, gradients in parts and layer by layer, dependency
    // groups, scores, pruning as a stage, and their tests.
    if !long.is_empty() || total > 57_000 {
        return Err(format!("over 500 lines: {long:?}; {total} lines in all").into());
    }
    Ok(())
}

fn folders_are_shallow() -> Result<(), Failed> {
    for (path, _) in sources("src") {
        if path.components().count() > 4 {
            return Err(format!("{}: more than two folders below src", path.display()).into());
        }
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if ["utils", "util", "common", "base", "helpers"].contains(&stem.as_str()) {
            return Err(format!("{}: a name that says nothing", path.display()).into());
        }
    }
    Ok(())
}
