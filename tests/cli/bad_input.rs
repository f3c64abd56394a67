//! What the program says to bad input: one line that names the place, the right exit code, and nothing written.

use std::path::{Path, PathBuf};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{NANO, TEXT, TINY, lopper, rows, snapshot, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("cli_bad_input":
        models, what_is_no_model, texts_of_files, safetensors, gguf, config, tokenizer, recipes, texts, arguments, devices, outputs)
}

/// A folder with a small model, `m`, and what is done to it.
struct World(TempDir);

impl World {
    fn new() -> Result<Self, Failed> {
        let world = World(TempDir::new()?);
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/nano-llama");
        std::fs::create_dir(world.path("m"))?;
        for entry in std::fs::read_dir(assets)? {
            let from = entry?.path();
            std::fs::copy(&from, world.path("m").join(from.file_name().unwrap_or_default()))?;
        }
        Ok(world)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), Failed> {
        let mut bytes = std::fs::read(self.path(name))?;
        change(&mut bytes);
        Ok(std::fs::write(self.path(name), bytes)?)
    }

    /// The command fails with this code and one line that has each text between ` & `, and changes nothing below the folder.
    fn refuses(&self, arguments: &str, code: i32, said: &str) -> Result<(), Failed> {
        let before = snapshot(&self.0)?;
        let device = match arguments.contains("--device") {
            true => "",
            false => "--device cpu",
        };
        let run = lopper(&self.0, &format!("{arguments} {device}"))?;
        let about = format!("lopper {arguments}: {run}");
        let lines = run.err.lines();
        let lines: Vec<_> = lines
            .filter(|line| !line.starts_with("note: ") && !line.starts_with("warning: "))
            .collect();
        let one = lines.len() == 1 && lines[0].starts_with("error: ");
        assert!(one && run.out.is_empty(), "one line is due: {about}");
        assert!(run.code == Some(code), "exit {code} is due: {about}");
        for text in said.split(" & ") {
            assert!(lines[0].contains(text), "`{text}` is due: {about}");
        }
        let after = snapshot(&self.0)?;
        assert!(before == after, "left {after:?}: {about}");
        Ok(())
    }

    /// Every command that reads a whole model refuses it.
    fn refuses_model(&self, model: &str, said: &str) -> Result<(), Failed> {
        self.refuses(&format!("eval {model} --ppl {TEXT}"), 2, said)?;
        self.refuses(&format!("quantize {model} --out new/q"), 2, said)?;
        self.refuses(&format!("export {model} --format hf --out new/e"), 2, said)
    }
}

fn models() -> Result<(), Failed> {
    let world = World::new()?;
    world.refuses_model("none", "none & cannot read")?;
    std::fs::create_dir(world.path("empty"))?;
    world.refuses_model("empty", "empty & is an empty folder & config.json")?;
    world.refuses_model("embedded:nobody", "embedded:nobody & embedded:tiny-llama")?;
    world.refuses_model("hub:some/body", "hub:some/body & not supported")?;
    world
        .refuses_model("m/tokenizer.json", "m/tokenizer.json & one file of & give the folder, m")?;
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", world.path("link"))?;
        world.refuses_model("link", "link & cannot read")?;
        world.refuses_model("/dev/null", "/dev/null & not a regular file")?;
    }
    std::fs::remove_file(world.path("m/model.safetensors"))?;
    world.refuses_model("m", "m & model.safetensors")?;
    std::fs::create_dir(world.path("m/model.safetensors"))?;
    world.refuses_model("m", "m/model.safetensors & cannot read")
}

/// Downloads gone wrong, other programs' files, and folders with something else in them: what it is, and what to do.
fn what_is_no_model() -> Result<(), Failed> {
    let world = World::new()?;
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n";
    let files: [(&[u8], &str); 8] = [
        (lfs.as_bytes(), "Git LFS & git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page & download"),
        (b"\n<html>", "web page"),
        (b"Entry not found", "server's message"),
        (b"PK\x03\x04\0\0\0\0\0\0\0\0", "PyTorch's & convert"),
        (b"\x80\x02\x8a\x0a\0\0\0\0\0\0", "PyTorch's & convert"),
        (b"tjgg\x03\0\0\0\0\0\0\0", "before GGUF & convert"),
        (b"", "is empty"),
    ];
    let whole = std::fs::read(world.path("m/model.safetensors"))?;
    let config = std::fs::read(world.path("m/config.json"))?;
    for (bytes, said) in files {
        for name in ["x.gguf", "x.bin", "m/model.safetensors", "m/config.json"] {
            std::fs::write(world.path(name), bytes)?;
            let model = if name.starts_with("m/") { "m" } else { name };
            world.refuses(&format!("inspect {model}"), 2, &format!("{name}: & {said}"))?;
            std::fs::write(world.path("m/model.safetensors"), &whole)?;
            std::fs::write(world.path("m/config.json"), &config)?;
        }
    }
    world.refuses_model(
        "some-body/Some-Model-1.5B",
        "hf download some-body/Some-Model-1.5B --local-dir Some-Model-1.5B",
    )?;
    world.refuses_model("nano-llama", "embedded:nano-llama")?;
    world.refuses_model(
        "m/model.safetensors",
        "one file of a model's folder & give the folder, m",
    )?;
    world.refuses_model("m/missing.gguf", "m/missing.gguf & cannot read")?;
    // Folders by the files in them.
    let table = "
        config.json pytorch_model.bin => .bin weights only & save_pretrained
        config.json model-00001-of-00002.safetensors => shards and no model.safetensors.index.json
        config.json consolidated.safetensors => consolidated
        config.json adapter_model.safetensors => adapter_model.safetensors and no model.safetensors
        config.json x.q4.gguf => GGUF files beside config.json & x.q4.gguf
        config.json tf_model.h5 => TensorFlow
        config.json notes.txt => no model.safetensors & config.json, notes.txt
        x-00001-of-00002.gguf x-00002-of-00002.gguf => folder of GGUF files & x-00001-of-00002.gguf
        consolidated.00.pth params.json => makers' own layout
        adapter_config.json adapter_model.safetensors => adapter & merge
        a b c d e f g h => it holds a, b, c, d, e, f, …
    ";
    for (names, said) in rows(table) {
        let folder = world.path("d");
        std::fs::create_dir(&folder)?;
        for name in names.split_whitespace() {
            let bytes = if name == "config.json" { &config[..] } else { b"GGUF" };
            std::fs::write(folder.join(name), bytes)?;
        }
        world.refuses("inspect d", 2, &format!("d: & {said}"))?;
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(world.path("d/snapshots"))?;
    std::fs::rename(world.path("m"), world.path("d/snapshots/0a1b"))?;
    world.refuses("inspect d", 2, "a model is in d/snapshots/0a1b")?;
    // An index whose files are not all there.
    let model = world.path("d/snapshots/0a1b");
    std::fs::rename(model.join("model.safetensors"), model.join("model-1.safetensors"))?;
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    std::fs::write(model.join("model.safetensors.index.json"), index)?;
    world.refuses("inspect d/snapshots/0a1b", 2, "1 of the 2 files & model-2.safetensors")
}

/// What a file says reaches the terminal in one line of bounded length, and moves no cursor.
fn texts_of_files() -> Result<(), Failed> {
    let world = World::new()?;
    let found = std::fs::read(world.path("m/config.json"))?;
    let mut config: Value = serde_json::from_slice(&found)?;
    for hostile in ["\u{1b}[2J\nerror: all is well", "\u{202e}txet", &"a".repeat(10_000)] {
        config["model_type"] = hostile.into();
        std::fs::write(world.path("m/config.json"), config.to_string())?;
        world.refuses("inspect m", 2, "model_type")?;
        let said = lopper(&world.0, "inspect m")?.err;
        let plain = !said.trim_end().contains(|c: char| c.is_control() || c == '\u{202e}');
        assert!(plain && said.len() < 1000, "{said:?}");
    }
    std::fs::write(world.path("m/config.json"), &found)?;
    // A tensor's name of 10 kB, in a warning.
    let whole = std::fs::read(world.path("m/model.safetensors"))?;
    let length = u64::from_le_bytes(whole[..8].try_into()?) as usize;
    let long = format!("\\u001b[31m{}", "t".repeat(10_000));
    let entry = format!(r#"{{"{long}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},"#);
    let header = [entry.as_bytes(), &whole[9..8 + length]].concat();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &whole[8 + length..]].concat();
    std::fs::write(world.path("m/model.safetensors"), bytes)?;
    let said = succeeds(&world.0, "inspect m")?.err;
    let plain = said.contains("warning: ") && !said.contains('\u{1b}') && said.len() < 1000;
    assert!(plain, "{said:?}");
    Ok(())
}

fn safetensors() -> Result<(), Failed> {
    let world = World::new()?;
    let whole = std::fs::read(world.path("m/model.safetensors"))?;
    for length in [0, 7, 100, whole.len() - 1] {
        world.edit("m/model.safetensors", |bytes| bytes.truncate(length))?;
        world.refuses_model("m", "m/model.safetensors")?;
        std::fs::write(world.path("m/model.safetensors"), &whole)?;
    }
    world.edit("m/model.safetensors", |bytes| bytes[..8].fill(255))?;
    world.refuses_model("m", "m/model.safetensors")?;

    // NaN and infinity in a weight of the last block, found by its place in the header.
    let length = u64::from_le_bytes(whole[..8].try_into()?) as usize;
    let header: Value = serde_json::from_slice(&whole[8..8 + length])?;
    for (name, bits, says) in [
        ("model.layers.1.mlp.up_proj.weight", 0x7e00u16, "NaN"),
        ("model.norm.weight", 0xfc00, "-inf"),
        ("model.embed_tokens.weight", 0x7c00, "inf"),
    ] {
        let start = header[name]["data_offsets"][0].as_u64().ok_or("no offset")? as usize;
        let place = 8 + length + start + 2 * 5;
        std::fs::write(world.path("m/model.safetensors"), &whole)?;
        world.edit("m/model.safetensors", |bytes| {
            bytes[place..place + 2].copy_from_slice(&bits.to_le_bytes());
        })?;
        world.refuses_model("m", &format!("{name} & {says} & column 5"))?;
    }
    Ok(())
}

fn gguf() -> Result<(), Failed> {
    let world = World::new()?;
    succeeds(&world.0, "export m --format gguf --out m.gguf")?;
    let whole = std::fs::read(world.path("m.gguf"))?;
    for length in [0, 3, 20, 1000, whole.len() / 2, whole.len() - 1] {
        world.edit("m.gguf", |bytes| bytes.truncate(length))?;
        let said = if length == 0 { "m.gguf & is empty" } else { "m.gguf & byte" };
        world.refuses_model("m.gguf", said)?;
        std::fs::write(world.path("m.gguf"), &whole)?;
    }
    // The counts of tensors and of metadata.
    for (place, count) in [(8, u64::MAX), (8, 1 << 60), (16, u64::MAX), (16, 1 << 40)] {
        std::fs::write(world.path("m.gguf"), &whole)?;
        world.edit("m.gguf", |bytes| {
            bytes[place..place + 8].copy_from_slice(&count.to_le_bytes())
        })?;
        world.refuses_model("m.gguf", &format!("m.gguf & byte & {count}"))?;
    }
    // A key's value stands behind the key and its type.
    for (key, value) in [
        ("llama.rope.dimension_count", 8u32.to_le_bytes()),
        ("llama.rope.freq_base", (-1.0f32).to_le_bytes()),
        ("llama.attention.layer_norm_rms_epsilon", f32::NAN.to_le_bytes()),
    ] {
        std::fs::write(world.path("m.gguf"), &whole)?;
        world.edit("m.gguf", |bytes| {
            let found = bytes.windows(key.len()).position(|w| w == key.as_bytes());
            let place = found.expect("the key is written") + key.len() + 4;
            bytes[place..place + 4].copy_from_slice(&value);
        })?;
        world.refuses_model("m.gguf", &format!("m.gguf & {key}"))?;
    }
    Ok(())
}

fn config() -> Result<(), Failed> {
    let world = World::new()?;
    let found = std::fs::read(world.path("m/config.json"))?;
    let table = r#"
        intermediate_size 256 => mlp.gate_proj & [256, 64]
        vocab_size 4000 => embed_tokens & [4000, 64]
        num_hidden_layers 3 => model.layers.2. & no such tensor
        tie_word_embeddings false => lm_head.weight & no such tensor
        hidden_size -1 => config.json & hidden_size
        num_attention_heads "four" => config.json & num_attention_heads
        num_key_value_heads 3 => config.json & num_key_value_heads
        model_type "mamba" => config.json & mamba
        rms_norm_eps "small" => config.json & rms_norm_eps
    "#;
    for (change, said) in rows(table) {
        let (key, value) = change.split_once(' ').ok_or("a key and its value")?;
        let mut config: Value = serde_json::from_slice(&found)?;
        config[key] = serde_json::from_str(value)?;
        std::fs::write(world.path("m/config.json"), config.to_string())?;
        world.refuses_model("m", said)?;
    }
    std::fs::write(world.path("m/config.json"), &found)?;
    world.edit("m/config.json", |text| text.truncate(30))?;
    world.refuses_model("m", "m/config.json & JSON")
}

fn tokenizer() -> Result<(), Failed> {
    let world = World::new()?;
    world.edit("m/tokenizer.json", |text| text.truncate(500))?;
    for command in
        [&format!("eval m --ppl {TEXT}"), "quantize m --out new/q", "generate m --prompt x"]
    {
        world.refuses(command, 2, "m & tokenizer.json")?;
    }
    // Work on weights passes it on as it is.
    for command in [
        "inspect m",
        "export m --format hf --out hf",
        "export m --format packed --out packed",
        "export m --format gguf --out m.gguf",
        "quantize m --no-eval --out q",
        "logits m --tokens 1,2 --out l",
    ] {
        succeeds(&world.0, command)?;
    }
    let bytes = std::fs::read(world.path("m/tokenizer.json"))?;
    for copy in ["hf", "packed", "q/hf", "q/packed"] {
        assert!(std::fs::read(world.path(copy).join("tokenizer.json"))? == bytes, "{copy}");
    }
    world.refuses(&format!("eval m.gguf --ppl {TEXT}"), 2, "m.gguf & none & not supported")?;
    lossy_tokenizer(&World::new()?)?;
    std::fs::remove_file(world.path("m/tokenizer.json"))?;
    let eval = format!("eval m --ppl {TEXT}");
    for command in [
        eval.as_str(),
        "generate m --prompt x",
        "quantize m --out other",
        "quantize m --no-eval --formats gguf --dry-run",
        "logits m --prompt x --out f",
    ] {
        world.refuses(command, 2, "m/tokenizer.json & cannot read")?;
    }
    world.refuses("export m --format gguf --out e.gguf", 2, "m & tokenizer")?;
    world.refuses(&format!("generate {TINY} --prompt x --chat"), 2, "chat_template")
}

/// What a GGUF cannot say of a tokenizer is said by the export.
fn lossy_tokenizer(world: &World) -> Result<(), Failed> {
    world.edit("m/tokenizer.json", |text| {
        let said =
            String::from_utf8_lossy(text).replacen("\"rstrip\": false", "\"rstrip\": true", 1);
        *text = said.into_bytes();
    })?;
    let run = succeeds(&world.0, "export m --format gguf --out lossy.gguf")?;
    assert!(run.err.contains("take the white space beside them"), "{run}");
    let plain = succeeds(&world.0, &format!("export {NANO} --format gguf --out plain.gguf"))?;
    assert!(!plain.err.contains("white space"), "{plain}");
    // A special id that names nothing is told where text is read, and stops nothing.
    world.edit("m/generation_config.json", |text| {
        *text = br#"{"eos_token_id": [2, 99999999]}"#.to_vec()
    })?;
    let run = succeeds(&world.0, "generate m --prompt x -n 2")?;
    assert!(run.err.contains("99999999"), "{run}");
    let run = succeeds(&world.0, "export m --format hf --out whole")?;
    assert!(!run.err.contains("99999999"), "{run}");
    Ok(())
}

fn recipes() -> Result<(), Failed> {
    let world = World::new()?;
    let good =
        succeeds(&world.0, &format!("quantize {NANO} --formats gguf,hf,packed --print-recipe"))?
            .out;
    let table = r#"
        seed => sead => r.toml & sead
        bits = 4 => bits = 4\nbitz = 4 => r.toml: line 8, column 1 & found `bitz = 4`
        ctx => context => r.toml & context
        bits = 4 => # => r.toml & bits
        bits = 4 => bits = 9 => r.toml: `stage.bits` in line 7, `bits = 9` & found 9
        bits = 4 => bits = -4 => r.toml & -4
        group_size = 32 => group_size = 24 => stage.group_size & 24
        float-min => float-max => r.toml & float-max
        rtn => magic => r.toml & magic
        model.layers.* => model.blocks.* => stage.include & model.blocks.*
        ctx = 512 => ctx = 1 => evaluate.ctx & 1
        "packed" => "zip" => r.toml & zip
        "hf" => "gguf" => export.formats & gguf twice
        model = => model => r.toml: line 1, column & `model 
        embedded:heldout-2026 => no.txt => no.txt & cannot read
    "#;
    for (from, change) in rows(table) {
        let (to, said) = change.split_once(" => ").ok_or("a text instead, and what is said")?;
        assert!(good.contains(from), "no {from} in {good}");
        std::fs::write(world.path("r.toml"), good.replace(from, &to.replace("\\n", "\n")))?;
        world.refuses("compress r.toml --out new/q", 2, said)?;
    }
    std::fs::write(world.path("r.toml"), [255, 254])?;
    world.refuses("compress r.toml", 2, "r.toml & UTF-8")?;
    world.refuses("compress none.toml", 2, "none.toml & cannot read")?;
    world.refuses("compress m", 2, "m & cannot read")
}

fn texts() -> Result<(), Failed> {
    let world = World::new()?;
    std::fs::write(world.path("bad.txt"), b"good\xff")?;
    std::fs::write(world.path("short.txt"), "A few words.")?;
    let table = format!(
        "none.txt => none.txt & cannot read
        m => m & cannot read
        bad.txt => bad.txt & byte 4 & UTF-8
        short.txt => window of 512 tokens
        embedded:x => embedded:x & {TEXT}
        {TEXT} --max-tokens 0 => --max-tokens & 0 tokens
        {TEXT} --max-tokens 64 => --max-tokens & window of 512 tokens (--ctx) & 64 tokens; --ctx 64 would do
        {TEXT} --ctx {} => window of",
        usize::MAX
    );
    for (text, said) in rows(&table) {
        world.refuses(&format!("eval m --ppl {text}"), 2, said)?;
        world.refuses(&format!("quantize m --out new/q --ppl {text}"), 2, said)?;
    }
    world.refuses(&format!("eval m --ppl {TEXT} --ctx 1"), 2, "--ctx & 1")?;
    let second_half = format!("eval m --ppl {TEXT} --ctx 2 --convention llama.cpp");
    world.refuses(&second_half, 2, "--ctx & 2")
}

fn arguments() -> Result<(), Failed> {
    let world = World::new()?;
    let table = "
        generate m --prompt x --temperature nan => --temperature & NaN
        generate m --prompt x --temperature -1 => --temperature & -1
        generate m --prompt= => --prompt & 0 tokens
        logits m --tokens 1,4096 --out f => token id & 4096
        logits m --prompt= --out f => --prompt & none
        prune m --ratio 25 --out q => --ratio & 25 % is 0.25
        prune m --ratio 1 --out q => --ratio & less than 1
        quantize m --out q --dry-run --ctx 1000 --max-tokens 10 => --max-tokens & --ctx 10 would do
        prune m --ratio 0.5 --out q --length 600 => --length & 512 tokens, the model's context
        scores m --score wanda --out f --token-file long.json => --token-file & 512 tokens & found 513
        logits m --out f --tokens LONG => --tokens & 1 to 512 tokens & 513 tokens
        quantize m --out q/m/ --dry-run --ppl none.txt => none.txt & cannot read
        prune m --ratio 0.5 --out q --dry-run --length 99999 => calibration text
        quantize m --out q --bits 0 => stage.bits & 0
        quantize m --out q --bits 1 --grid absmax-symmetric => stage.bits & 1
        quantize m --out q --group-size 8 => stage.group_size & 8
        quantize m --out q --type q7_k => stage.type & q7_k
        quantize m --out q --type q4_0 --grid float-min => stage.type & q4_0
        quantize m --out q --include [ => stage.include & [
        quantize m --out q --exclude * => stage.include & none
        inspect m --backend direct3d => --backend & direct3d
    ";
    let long = vec!["1"; 513].join(",");
    std::fs::write(world.path("long.json"), format!("[[{long}]]"))?;
    for (arguments, said) in rows(table) {
        world.refuses(&arguments.replace("LONG", &long), 2, said)?;
    }
    // Mistakes of usage are told by the parser, in its own more than one line.
    for wrong in
        ["", "nonsense", "eval", "eval m", "inspect m --bits 4", "inspect m --vram-budget much"]
    {
        let run = lopper(&world.0, wrong)?;
        assert!(
            run.code == Some(2) && run.out.is_empty() && !run.err.is_empty(),
            "lopper {wrong}: {run}"
        );
    }
    Ok(())
}

fn devices() -> Result<(), Failed> {
    let world = World::new()?;
    for device in ["auto", "gpu", "checked"] {
        let eval = format!("eval m --ppl {TEXT} --adapter nonesuch --device {device}");
        world.refuses(&eval, 3, "no GPU adapter & nonesuch")?;
    }
    world.refuses("quantize m --out new/q --adapter nonesuch --device gpu", 3, "nonesuch")
}

fn outputs() -> Result<(), Failed> {
    let world = World::new()?;
    std::fs::write(world.path("file"), "stays")?;
    std::fs::create_dir_all(world.path("home/letters"))?;
    let logits = "logits m --tokens 1 --out OUT";
    let quantize = "quantize m --no-eval --out OUT";
    let hf = "export m --format hf --out OUT";
    let gguf = "export m --format gguf --out OUT";
    for command in [logits, quantize, hf, gguf] {
        let refuses = |out: &str, said: &str| world.refuses(&command.replace("OUT", out), 4, said);
        refuses("file/below/it", "file/below/it & cannot write")?;
        refuses("file", "file & --force")?;
        if cfg!(target_os = "linux") {
            refuses("/proc/lopper", "/proc/lopper & cannot write")?;
        }
        // --force replaces results, not what they are made from, nor a stranger's folder.
        refuses("m --force", "m: cannot write")?;
        refuses("home --force", "home: cannot write")?;
    }
    world.refuses(&quantize.replace("OUT", "file --dry-run"), 4, "file & --force")?;
    for command in [quantize, hf] {
        world.refuses(&command.replace("OUT", "file --force"), 4, "a file stands there")?;
    }
    let inspect = "inspect m --json=OUT";
    world.refuses(&inspect.replace("OUT", "none/x.json"), 4, "none/x.json & cannot write")?;
    world.refuses(&inspect.replace("OUT", "m"), 4, "m: cannot write")?;
    succeeds(&world.0, &gguf.replace("OUT", "m.gguf"))?;
    let onto_itself = "export m.gguf --format gguf --out m.gguf --force";
    world.refuses(onto_itself, 4, "m.gguf & the model itself")
}
