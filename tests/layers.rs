//! Rules of the source tree: which module may import which, which may print or name wgpu, how deep folders go.

use std::path::{Path, PathBuf};

use libtest_mimic::{Failed, Trial};

/// Modules from what knows most to what knows least. A module may import those after it, never those before.
const ORDER: &[&str] = &[
    "main",
    "cli",
    "serve",
    "run",
    "plan",
    "recipe",
    "stages",
    "train",
    "methods",
    "measure",
    "walk",
    "model",
    "families",
    "graph",
    "kernels",
    "device",
    "compare",
    "gpu",
    "data",
    "text",
    "formats",
    "tensor",
    "plot",
    "jinja",
    "disk",
    "interrupt",
    "contain",
    "error",
];

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("layers::imports_point_down", imports_point_down),
        Trial::test("layers::only_cli_prints", only_cli_prints),
        Trial::test("layers::only_gpu_and_cli_name_wgpu", only_gpu_and_cli_name_wgpu),
        Trial::test("layers::folders_are_shallow", folders_are_shallow),
        Trial::test("layers::the_package_is_small", the_package_is_small),
    ]
}

/// What is published, compressed: what the program is built from and two of its embedded models, which are most of it.
fn the_package_is_small() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let target = folder.path().join("target");
    let mut package = std::process::Command::new(env!("CARGO"));
    package
        .args(["package", "--no-verify", "--allow-dirty", "--offline", "--quiet", "--target-dir"])
        .arg(&target);
    let package = package.output()?;
    assert!(package.status.success(), "{}", String::from_utf8_lossy(&package.stderr));
    let archive =
        target.join("package").join(concat!("lopper-", env!("CARGO_PKG_VERSION"), ".crate"));
    let bytes = archive.metadata()?.len();
    assert!(bytes > 4_000_000 && bytes < 8_000_000, "{bytes} bytes");
    let list = ["package", "--list", "--allow-dirty", "--offline"];
    let list =
        String::from_utf8(std::process::Command::new(env!("CARGO")).args(list).output()?.stdout)?;
    let has = |start: &str| list.lines().any(|name| name.starts_with(start));
    assert!(has("build.rs") && has("assets/tiny-llama/") && has("assets/nano-llama/"), "{list}");
    assert!(!has("tests/") && !has("assets/tiny-t5/") && !has("assets/golden/"), "{list}");
    Ok(())
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
    let first =
        relative.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    first.unwrap_or_default().trim_end_matches(".rs").to_string()
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
            wrong.push(format!("{}: module {own} is not in the list", path.display()));
            continue;
        };
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for part in line.split("crate::").skip(1) {
                let name: String =
                    part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                match place(&name) {
                    Some(there) if there >= own_place => {}
                    _ => wrong.push(format!("{}: {}", path.display(), line.trim())),
                }
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

fn only_cli_prints() -> Result<(), Failed> {
    let prints = ["println!", "eprintln!", "print!(", "eprint!(", "stdout()", "stderr()", "dbg!"];
    for (path, text) in sources("src") {
        // What renders templates replies to its parent over the standard output; nobody reads it.
        if module(&path) == "cli" || path.ends_with("jinja/child.rs") {
            continue;
        }
        if let Some(what) = prints.iter().find(|what| text.contains(**what)) {
            return Err(format!("{} has {what}", path.display()).into());
        }
    }
    Ok(())
}

fn only_gpu_and_cli_name_wgpu() -> Result<(), Failed> {
    for (path, text) in sources("src") {
        let own = module(&path);
        let knows = text.contains("wgpu::");
        if knows && !["gpu", "cli"].contains(&own.as_str()) {
            return Err(format!("{} uses wgpu", path.display()).into());
        }
    }
    Ok(())
}

fn folders_are_shallow() -> Result<(), Failed> {
    for (path, _) in sources("src") {
        if path.components().count() > 5 {
            return Err(format!("{}: more than three folders below src", path.display()).into());
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if ["utils", "util", "common", "base", "helpers"].contains(&stem.as_str()) {
            return Err(format!("{}: a name that says nothing", path.display()).into());
        }
    }
    Ok(())
}
