//! Model cards: what a written folder says of itself.

use libtest_mimic::{Failed, Trial};
use serde_json::json;
use tempfile::TempDir;

use crate::models::{read_folder, write_model};
use crate::program::{read_json, runs};

pub fn trials() -> Vec<Trial> {
    suite!("cards": written_folders_have_cards, names_and_licences_are_handed_on)
}

fn written_folders_have_cards() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let flags = "--type int4 --formats gptq,packed,gguf --max-tokens 512 --ctx 64 --device cpu";
    runs(folder.path(), &format!("quantize embedded:nano-llama {flags} --out a"))?;
    let read = |path: &str| std::fs::read_to_string(folder.path().join(path));
    let (whole, gptq, packed) =
        (read("a/README.md")?, read("a/gptq/README.md")?, read("a/packed/README.md")?);
    let manifest = read_json(folder.path().join("a/manifest.json"))?;
    let perplexity = manifest["stages"][0]["figures"]["perplexity"]["value"].as_f64();
    let perplexity = format!("{:.4} ± ", perplexity.ok_or("a figure")?);
    for text in [&whole, &gptq, &packed] {
        assert!(text.starts_with("---\nlibrary_name: "), "{text}");
        for part in [
            "pipeline_tag: \"text-generation\"\n",
            "- \"quantize\"\n",
            "embedded:nano-llama",
            "grid = \"signed-max\"",
            &perplexity,
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    assert!(
        gptq.contains("library_name: \"transformers\"\n") && gptq.contains("- \"gptq\"\n"),
        "{gptq}"
    );
    assert!(packed.contains("library_name: \"lopper\"\n"), "{packed}");
    let listed = manifest["outputs"].as_array().ok_or("outputs")?;
    assert!(listed.iter().any(|file| file["path"] == "gptq/README.md"));
    Ok(())
}

/// From a parent whose configuration and card say them; over two steps.
fn names_and_licences_are_handed_on() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let source = folder.path().join("parent");
    std::fs::create_dir(&source)?;
    let (mut config, tensors) = read_folder("assets/fixtures/quantized/gptq-4-g32".as_ref())?;
    config.insert("_name_or_path".into(), json!("some/model-1b"));
    write_model(&source, &config, &tensors)?;
    let card = "---\nlicense: other\nlicense_name: \"own\"\nbase_model:\n- else/where\n---\n# text\nlicense: none\n";
    std::fs::write(source.join("README.md"), card)?;
    runs(folder.path(), "export parent --format awq --out b")?;
    // The configuration no longer has the name; the card does.
    let path = folder.path().join("b/config.json");
    let mut config = read_json(&path)?;
    config.as_object_mut().ok_or("an object")?.remove("_name_or_path");
    std::fs::write(&path, config.to_string())?;
    runs(folder.path(), "export b --format compressed-tensors --out c")?;
    for (name, format) in [("b", "awq"), ("c", "compressed-tensors")] {
        let text = std::fs::read_to_string(folder.path().join(name).join("README.md"))?;
        let front = "---\nbase_model: \"some/model-1b\"\nbase_model_relation: \"quantized\"\nlicense: \"other\"\nlicense_name: \"own\"\n";
        assert!(text.starts_with(front) && text.contains(&format!("- \"{format}\"\n")), "{text}");
    }
    // Into a folder that is replaced: the card is Lopper's own there.
    runs(folder.path(), "export parent --format awq --out c --force")?;
    Ok(())
}
