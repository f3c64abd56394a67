//! Lists the models that become part of the program: those that the source tree holds. The published package leaves some out, for
//! size; a clone has all.

use std::path::Path;

/// Every model that a program may hold, in the order in which they are told.
const MODELS: &[&str] = &["tiny-llama", "nano-llama", "tiny-mixtral", "tiny-t5"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let root = std::env::var("CARGO_MANIFEST_DIR")?;
    let (mut present, mut absent) = (String::new(), String::new());
    for name in MODELS {
        let folder = Path::new(&root).join("assets").join(name);
        if folder.join("model.safetensors").is_file() {
            println!("cargo::rerun-if-changed={}", folder.display());
            present += &format!("embedded!({name:?}),");
        } else {
            absent += &format!("{name:?},");
        }
    }
    let out = Path::new(&std::env::var("OUT_DIR")?).join("embedded.rs");
    let text = format!(
        "/// Every embedded model.\npub static EMBEDDED: &[EmbeddedModel] = &[{present}];\n\n\
         /// Models that the repository has and the sources of this program had not.\npub static LEFT_OUT: &[&str] = &[{absent}];\n"
    );
    std::fs::write(out, text)?;
    Ok(())
}
