//! Mutated inputs for everything that reads what strangers wrote. A case may be refused or taken; it must not panic, take
//! more than a second's worth of time, or ask for more memory than a small machine has.
//!
//! Each target runs in a process of its own, so that one that ends it is a failure of that target only.
//! `LOPPER_FUZZ_SECONDS` makes the runs longer, `LOPPER_FUZZ_CASE` runs one case, as a failure tells it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use lopper::data::training::{Dataset, Examples, Position};
use lopper::data::{Pooling, read_task};
use lopper::formats::imatrix::{Entry, Imatrix};
use lopper::jinja::{Dialect, Renderer};
use lopper::model::{Adapters, Checkpoint, Weights, export_gguf, export_packed};
use lopper::plan::Plan;
use lopper::recipe::Recipe;
use lopper::tensor::{Packed, WeightFormat};
use lopper::text::{StoredTokenizer, Tokenizer};
use serde_json::{Value as Json, json};

use super::mutations::{Random, bytes, document};
use crate::models::MapWeights;

/// How long a target runs in the suite.
const SECONDS: f64 = 1.5;
/// No case may take longer on a busy machine; what is bounded by time takes two seconds.
const MOST: Duration = Duration::from_secs(15);
/// Memory of a target's process.
#[cfg(unix)]
const MEMORY: u64 = 1 << 30;

/// Makes the case of a number in a folder and reads it.
type Target = fn(&Base, &mut Random);

const TARGETS: &[(&str, Target)] = &[
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("config", config),
    ("tokenizer", tokenizer),
    ("recipe", recipe),
    ("task", task),
    ("template", template),
    ("packed", packed),
    ("quantized", quantized),
    ("imatrix", imatrix),
    ("adapter", adapter),
    ("training", training),
];

pub fn trials() -> Vec<Trial> {
    let trial = |name: &'static str| Trial::test(format!("fuzz::{name}"), move || run(name));
    TARGETS.iter().map(|(name, _)| trial(name)).collect()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Runs a target in a process of its own.
fn run(name: &str) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let output = Command::new(std::env::current_exe()?)
        .env("LOPPER_FUZZ_TARGET", name)
        .env("LOPPER_FUZZ_FOLDER", folder.path())
        .output()?;
    let case = std::fs::read_to_string(folder.path().join("case")).unwrap_or_default();
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{name}, case {case}: {}: {said}", output.status).into());
    }
    let last: u64 = case.trim().parse()?;
    if variable("LOPPER_FUZZ_SECONDS").is_some() {
        writeln!(std::io::stderr(), "{name}: {} cases", last + 1)?;
    }
    Ok(())
}

/// The process of a target; its exit code, if this is one.
pub fn child() -> Option<i32> {
    let name = variable("LOPPER_FUZZ_TARGET")?;
    let folder = PathBuf::from(variable("LOPPER_FUZZ_FOLDER")?);
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name)?;
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};
        let limit = Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
        setrlimit(Resource::Data, limit).expect("a limit of memory");
    }
    let base = Base::new(&folder);
    let only: Option<u64> = variable("LOPPER_FUZZ_CASE").and_then(|case| case.parse().ok());
    let seconds =
        variable("LOPPER_FUZZ_SECONDS").and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let start = Instant::now();
    let mut case = only.unwrap_or(0);
    loop {
        std::fs::write(folder.join("case"), case.to_string()).expect("the case's number");
        let began = Instant::now();
        target(&base, &mut Random::new(case));
        assert!(began.elapsed() < MOST, "{:.1} s", began.elapsed().as_secs_f64());
        case += 1;
        if only.is_some() || start.elapsed().as_secs_f64() > seconds {
            break;
        }
    }
    Some(0)
}

/// Small valid files.
struct Base {
    folder: PathBuf,
    gguf: Vec<u8>,
    files: Vec<(&'static str, Vec<u8>)>,
    packed: Vec<(&'static str, Vec<u8>)>,
    /// Folders that other tools quantized.
    quantized: Vec<Vec<(&'static str, Vec<u8>)>>,
    documents: Vec<Json>,
    /// In llama.cpp's layout and in the one before.
    imatrices: [Vec<u8>; 2],
    /// PEFT's.
    adapter: Vec<(&'static str, Vec<u8>)>,
}

const MODEL: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors",
];

const QUANTIZED: &[&str] =
    &["config.json", "quantize_config.json", "hf_quant_config.json", "model.safetensors"];

fn read(folder: &Path, names: &[&'static str]) -> Vec<(&'static str, Vec<u8>)> {
    let files =
        names.iter().filter_map(|name| Some((*name, std::fs::read(folder.join(name)).ok()?)));
    files.collect()
}

impl Base {
    fn new(folder: &Path) -> Self {
        let source = "assets/families/mistral";
        let parent = Checkpoint::open(source).expect("a model");
        let tokenizer = parent.stored_tokenizer().expect("its tokenizer");
        let path = folder.join("base.gguf");
        export_gguf(&path, &parent, &parent, Some(&tokenizer)).expect("a GGUF file");
        let format = WeightFormat::from_label("uint4m-g32").expect("a format");
        let to_packed = |spec: &lopper::model::TensorSpec, packed: Packed| {
            let matrix = spec.rows > 1 && spec.columns.is_multiple_of(32);
            Ok(if matrix { Packed::zeros(format, spec.rows, spec.columns) } else { packed })
        };
        let quantized = MapWeights(&parent, &to_packed);
        struct InFormat<'a>(&'a dyn Weights, WeightFormat);
        impl Weights for InFormat<'_> {
            fn config(&self) -> &lopper::model::Config {
                self.0.config()
            }
            fn specs(&self) -> &[lopper::model::TensorSpec] {
                self.0.specs()
            }
            fn load(&self, spec: &lopper::model::TensorSpec) -> lopper::error::Result<Packed> {
                self.0.load(spec)
            }
            fn format(
                &self,
                spec: &lopper::model::TensorSpec,
            ) -> lopper::error::Result<WeightFormat> {
                let matrix = spec.rows > 1 && spec.columns.is_multiple_of(32);
                if matrix { Ok(self.1) } else { self.0.format(spec) }
            }
        }
        let packed = folder.join("base-packed");
        std::fs::create_dir(&packed).expect("a folder");
        let weights = InFormat(&quantized, format);
        export_packed(
            &packed,
            parent.config_json().expect("its config"),
            &weights,
            Some(&tokenizer),
        )
        .expect("a packed folder");
        let mut documents: Vec<Json> = ["gpt-2", "llama-bpe", "qwen2"]
            .iter()
            .map(|kind| {
                let text =
                    std::fs::read(format!("assets/tokenizers/{kind}.json")).expect("a fixture");
                small(serde_json::from_slice::<Json>(&text).expect("JSON")["tokenizer"].clone())
            })
            .collect();
        for family in ["mistral", "gemma3"] {
            let text = std::fs::read(format!("assets/families/{family}/tokenizer.json"))
                .expect("a document");
            documents.push(serde_json::from_slice(&text).expect("JSON"));
        }
        documents.push(json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}, "model": {"type": "WordPiece", "unk_token": "u",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"u": 0, "a": 1, "##b": 2, "ab": 3}}}));
        documents.push(json!({"version": "1.0", "added_tokens": [], "normalizer": {"type": "NFKC"}, "pre_tokenizer":
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}, "decoder": null,
            "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [["<unk>", 0.0], ["▁a", -1.0], ["b", -2.0]]}}));
        assert_eq!(
            Checkpoint::open(&packed.to_string_lossy()).expect("the packed folder").container(),
            "lopper"
        );
        Self {
            folder: folder.into(),
            gguf: std::fs::read(&path).expect("the GGUF file"),
            files: read(Path::new(source), MODEL),
            packed: read(&packed, MODEL),
            quantized: [
                "gptq-v2-mixed",
                "awq-g32",
                "ct-mixed",
                "ct-pack-4-asym",
                "ct-nvfp4",
                "mlx-affine",
                "modelopt-nvfp4",
            ]
            .map(|name| read(&Path::new("assets/fixtures/quantized").join(name), QUANTIZED))
            .to_vec(),
            documents,
            imatrices: imatrices(folder),
            adapter: read(
                Path::new("assets/fixtures/peft"),
                &["adapter_config.json", "adapter_model.safetensors"],
            ),
        }
    }

    /// Writes a model folder with one file replaced.
    fn with(&self, files: &[(&str, Vec<u8>)], name: &str, bytes: &[u8]) -> PathBuf {
        let folder = self.folder.join("model");
        std::fs::create_dir_all(&folder).expect("a folder");
        for (other, content) in files {
            let content = if *other == name { bytes } else { content };
            let path = folder.join(other);
            if std::fs::read(&path).ok().as_deref() != Some(content) {
                std::fs::write(path, content).expect("a file");
            }
        }
        folder
    }
}

/// A byte-level document with its first merges only.
fn small(mut document: Json) -> Json {
    let model = document["model"].as_object_mut().expect("a model");
    let merges = model["merges"].as_array_mut().expect("merges");
    merges.truncate(30);
    let part = |merge: &Json, at: usize| match merge {
        Json::String(text) => text.split(' ').nth(at).unwrap_or_default().to_string(),
        pair => pair[at].as_str().unwrap_or_default().to_string(),
    };
    let made: Vec<String> = merges.iter().map(|merge| part(merge, 0) + &part(merge, 1)).collect();
    let vocab = model["vocab"].as_object_mut().expect("a vocabulary");
    vocab.retain(|token, _| token.chars().count() == 1 || made.contains(token));
    document
}

/// Opens a model and asks it for everything that is read from a file.
fn use_model(path: &Path) {
    let Ok(model) = Checkpoint::open(&path.to_string_lossy()) else { return };
    let _ = (
        model.config_json(),
        model.parameters(),
        model.total_stored_bytes(),
        model.config().beyond_context(512),
    );
    for spec in model.specs() {
        let _ = (
            model.format(spec),
            model.stored_type(spec),
            model.load(spec).map(|packed| packed.first_non_finite()),
        );
    }
    if let Ok(tokenizer) = model.stored_tokenizer() {
        use_tokenizer(&tokenizer);
    }
}

fn use_tokenizer(stored: &StoredTokenizer) {
    let Ok(tokenizer) = stored.read() else { return };
    let _ = (tokenizer.to_hf_files(), tokenizer.to_gguf_metadata(tokenizer.vocab_size.min(4096)));
    let texts = [
        "",
        "a",
        " Hello, wörld 123  \n\n x<s></s>",
        "qqq b ▁x Ġ \u{301}é中文 <unk> \r\n\0",
        &"ab ".repeat(200),
    ];
    for text in texts {
        let Ok(ids) = tokenizer.encode(text, true) else { continue };
        let _ = (
            tokenizer.decode(&ids, false),
            tokenizer.decode(&ids, true),
            tokenizer.encode_with_ends(text, true, 50),
        );
    }
    let ids: Vec<u32> = (0..300).chain([u32::MAX]).collect();
    let _ = tokenizer.decode(&ids, true);
    let mut stream = tokenizer.decode_stream(false);
    for id in ids.iter().take(40) {
        let _ = stream.push(*id);
    }
}

fn gguf(base: &Base, random: &mut Random) {
    let path = base.folder.join("case.gguf");
    std::fs::write(&path, bytes(random, &base.gguf, 24_000)).expect("a file");
    use_model(&path);
}

/// Two importance matrices of two tensors.
fn imatrices(folder: &Path) -> [Vec<u8>; 2] {
    let mut old = 2i32.to_le_bytes().to_vec();
    let mut imatrix = Imatrix { datasets: vec!["text".into()], chunks: 3, ..Imatrix::default() };
    for name in ["blk.0.attn_q.weight", "blk.0.ffn_down.weight"] {
        let entry = Entry { sums: vec![0.5; 64], counts: vec![7.0] };
        old.extend((name.len() as i32).to_le_bytes());
        old.extend(name.as_bytes());
        old.extend([7i32, 64].into_iter().flat_map(i32::to_le_bytes));
        old.extend(entry.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        imatrix.entries.insert(name.into(), entry);
    }
    let path = folder.join("base-imatrix.gguf");
    imatrix.write(&path).expect("an imatrix");
    [std::fs::read(&path).expect("the imatrix"), old]
}

fn imatrix(base: &Base, random: &mut Random) {
    let path = base.folder.join("case.imatrix");
    let original = &base.imatrices[usize::from(random.once_in(2))];
    let case = bytes(random, original, original.len());
    std::fs::write(&path, &case).expect("a file");
    if let Ok(found) = Imatrix::open(&path) {
        let sums: usize = found.entries.values().map(|entry| entry.sums.len()).sum();
        assert!(4 * sums <= case.len(), "{sums} sums");
        let _ = found.tokens();
    }
}

fn safetensors(base: &Base, random: &mut Random) {
    let original =
        &base.files.iter().find(|(name, _)| *name == "model.safetensors").expect("weights").1;
    use_model(&base.with(&base.files, "model.safetensors", &bytes(random, original, 4000)));
}

/// A JSON file, changed in its structure, in its bytes, or both.
fn mutated(random: &mut Random, original: &Json, parts: &[Json]) -> Vec<u8> {
    let text = match random.once_in(6) {
        true => original.to_string(),
        false => document(random, original, parts).to_string(),
    };
    match random.once_in(4) {
        true => bytes(random, text.as_bytes(), text.len()),
        false => text.into_bytes(),
    }
}

fn json_of(files: &[(&str, Vec<u8>)], name: &str) -> Json {
    let bytes = files.iter().find(|(known, _)| *known == name).map(|(_, bytes)| bytes.as_slice());
    serde_json::from_slice(bytes.expect("a file")).expect("JSON")
}

fn config(base: &Base, random: &mut Random) {
    let name = *random.pick(&[
        "config.json",
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
    ]);
    let parts = [
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}),
        json!({"type": "linear", "factor": 0.0}),
        json!({"0": {"content": "<x>", "special": true}}),
        json!(["<a>", {"content": ""}]),
        json!("gemma3_text"),
    ];
    let case = mutated(random, &json_of(&base.files, name), &parts);
    use_model(&base.with(&base.files, name, &case));
}

fn tokenizer(base: &Base, random: &mut Random) {
    let parts = [
        json!({"type": "Strip", "content": " ", "start": 0, "stop": 3}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "FixedLength", "length": 0}),
        json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAEAAAA="}),
        json!({"type": "Replace", "pattern": {"Regex": "\\b"}, "content": "xy"}),
        json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}),
        json!({"type": "Replace", "pattern": {"Regex": "(?=q)"}, "content": ""}),
        json!({"type": "Split", "pattern": {"Regex": "x*"}, "behavior": "MergedWithNext", "invert": true}),
        json!({"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Removed", "invert": false}),
        json!({"type": "Prepend", "prepend": "▁▁"}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
        json!({"type": "NFKD"}),
        json!({"type": "StripAccents"}),
        json!({"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
        json!({"type": "BPEDecoder", "suffix": ""}),
        json!({"type": "Fuse"}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Punctuation", "behavior": "Contiguous"}),
        json!({"type": "UnicodeScripts"}),
        json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}], "pair": [], "special_tokens": {}}),
        json!({"type": "BPE", "continuing_subword_prefix": "x", "vocab": {"a": 0, "é": 1}, "merges": [["a", "é"]]}),
        json!({"id": 0, "content": "\u{301}", "single_word": true, "lstrip": true, "rstrip": true, "normalized": true, "special": false}),
        json!(["a", "é"]),
        json!("a b"),
    ];
    let original = random.pick(&base.documents).clone();
    // A vocabulary is most of a document; its other parts are what matters.
    let mut case = original.clone();
    if !random.once_in(4) {
        let role = *random.pick(&[
            "normalizer",
            "pre_tokenizer",
            "decoder",
            "post_processor",
            "added_tokens",
        ]);
        case[role] = document(random, &original[role], &parts);
        if random.once_in(3) {
            let list = match role {
                "normalizer" => "normalizers",
                "decoder" => "decoders",
                _ => "pretokenizers",
            };
            let steps: Vec<Json> =
                (0..random.below(5)).map(|_| random.pick(&parts).clone()).collect();
            case[role] = json!({"type": "Sequence", list: steps});
        }
    }
    let bytes = match random.once_in(3) {
        true => mutated(random, &case, &parts),
        false => case.to_string().into_bytes(),
    };
    let mut files = vec![("tokenizer.json", bytes)];
    files.extend(base.files.iter().filter(|(name, _)| name.ends_with("config.json")).cloned());
    use_tokenizer(&StoredTokenizer::of_folder(Path::new("case"), files));
}

fn recipe(_: &Base, random: &mut Random) {
    let recipes = [
        include_str!("../../assets/recipes/quantize-4bit.toml"),
        "model = \"embedded:nano-llama\"\n[[stage]]\nkind = \"prune\"\nratio = 0.2\nscore = \"param_first\"\ncalibration = { text = \
         \"embedded:calibration\", samples = 10, length = 64 }\n[[stage]]\nkind = \"quantize\"\nbits = 4\ngroup_size = 32\ngrid = \
         \"codebook\"\ncodebook = [-1.0, -0.2, 0.3, 1.0]\nexclude = [\"*.down_proj\"]\n[export]\nformats = [\"gguf\", \"packed\"]\n",
    ];
    let original = *random.pick(&recipes);
    let text = bytes(random, original.as_bytes(), 4000);
    let Ok(recipe) = Recipe::parse(Path::new("case.toml"), &String::from_utf8_lossy(&text)) else {
        return;
    };
    let _ = recipe.to_toml();
    let nano = Checkpoint::open("embedded:nano-llama").expect("a model");
    let _ = Plan::new(&recipe, &nano).map(|plan| plan.check_budget(Some(1 << 30)));
}

fn task(base: &Base, random: &mut Random) {
    let tasks = [
        "data = \"data.jsonl\"\nprompt = \"{{ q }}\\nAnswer:\"\nchoices = [\"{{ a }}\", \"{{ b }}\"]\nanswer = \"{{ n }}\"\n",
        "data = \"data.jsonl\"\nform = \"generation\"\nprompt = \"{% for c in list %}{{ c }} {% endfor %}\"\ntarget = \"{{ a }}\"\n\
         max_tokens = 8\nstop = [\"x\"]\nanswer_pattern = \"(\\\\d+)\"\nnormalize = [\"case\", \"numbers\"]\n",
        "data = \"data.csv\"\nprompt = \"{{ q }}\"\nchoices = \"list\"\nanswer = \"{{ n }}\"\nanswer_is = \"letter\"\n",
        "data = \"data.jsonl\"\nlayout = \"arc\"\n",
    ];
    let data = [
        "{\"q\": \"2 + 2\", \"a\": \"4\", \"b\": \"5\", \"n\": 0, \"list\": [\"x\", \"y\"]}\n{\"q\": \"é\", \"a\": \"1\", \"b\": \"2\", \"n\": 1, \"list\": []}\n",
        "q,a,n\n\"1, 2\",x,A\n3,y,B\n",
        "{\"id\": \"1\", \"question\": {\"stem\": \"s\", \"choices\": [{\"text\": \"x\", \"label\": \"A\"}, {\"text\": \"y\", \"label\": \"B\"}]}, \"answerKey\": \"A\"}\n",
    ];
    let folder = base.folder.join("task");
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut source = random.pick(&tasks).as_bytes().to_vec();
    let mut lines = random.pick(&data).as_bytes().to_vec();
    match random.below(3) {
        0 => source = bytes(random, &source, 1000),
        1 => lines = bytes(random, &lines, 1000),
        _ => (source, lines) = (bytes(random, &source, 1000), bytes(random, &lines, 1000)),
    }
    for (name, content) in [("task.toml", &source), ("data.jsonl", &lines), ("data.csv", &lines)] {
        std::fs::write(folder.join(name), content).expect("a file");
    }
    let _ = read_task(&folder.join("task.toml").to_string_lossy(), None);
    let _ = read_task(&folder.join("data.jsonl").to_string_lossy(), None);
}

fn template(_: &Base, random: &mut Random) {
    let pieces = [
        "{% for m in messages %}",
        "{% endfor %}",
        "{{ m.content }}",
        "{{ m['role'] | upper }}",
        "{% if m.role == 'user' %}",
        "{% endif %}",
        "{% else %}",
        "{% set ns = namespace(x='ab') %}",
        "{% set ns.x = ns.x ~ ns.x %}",
        "{% set ns.x = [ns.x] %}",
        "{{ ns.x }}",
        "{% set ns.x = ns %}",
        "{{ messages | tojson(indent=2) }}",
        "{% macro f(a) %}",
        "{% endmacro %}",
        "{{ f(1) }}",
        "{{ caller() }}",
        "{% call f(2) %}",
        "{% endcall %}",
        "{% generation %}",
        "{% endgeneration %}",
        "{% raw %}",
        "{% endraw %}",
        "{# x #}",
        "{{ range(100000) | list | length }}",
        "{{ 'a'.center(99999) }}",
        "{{ (1, 2)[0] }}",
        "{{ 'x' * 99 }}",
        "{{ [1] * 9999999 }}",
        "{{ 'a b'.rsplit(none, 1) }}",
        "{{ 'a:b'.partition(':') }}",
        "{{ raise_exception('no') }}",
        "{{ strftime_now('%-d') }}",
        "text\n",
        "{%- set a, b = 1, 2 -%}",
        "{{ -1 // 0 }}",
        "{{ 2 ** 9999 }}",
        "{{ 9223372036854775807 + 1 }}",
        "{{ messages[1:][::-1] }}",
        "{% filter indent(4) %}",
        "{% endfilter %}",
        "{{ 'é'[0:1] }}",
        "{{ '%s' | format(ns) }}",
        "{{ loop.cycle(1) }}",
    ];
    let mut source = String::new();
    for _ in 0..=random.below(14) {
        source += pieces[random.below(pieces.len())];
    }
    if random.once_in(2) {
        source = String::from_utf8_lossy(&bytes(random, source.as_bytes(), 1000)).into_owned();
    }
    let values = json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "tools": null});
    for dialect in [Dialect::Chat, Dialect::Task] {
        let made = Renderer::new(dialect).render(&source, &values).expect("no Ctrl-C");
        assert!(made.is_err() || made.is_ok_and(|text| text.len() < 4 << 20));
    }
}

fn packed(base: &Base, random: &mut Random) {
    let folder = match random.once_in(2) {
        true => {
            let parts = [
                json!({"type": "uint4m", "group_size": 32}),
                json!("f32"),
                json!("uint4m"),
                json!({"quant_method": "lopper", "version": 1, "tensors": {}}),
            ];
            let case = mutated(random, &json_of(&base.packed, "config.json"), &parts);
            base.with(&base.packed, "config.json", &case)
        }
        false => {
            let original = &base
                .packed
                .iter()
                .find(|(name, _)| *name == "model.safetensors")
                .expect("weights")
                .1;
            base.with(&base.packed, "model.safetensors", &bytes(random, original, 6000))
        }
    };
    use_model(&folder);
}

fn quantized(base: &Base, random: &mut Random) {
    let files = random.pick(&base.quantized);
    let (name, original) = random.pick(files);
    let case = match name.ends_with(".json") {
        true => {
            let parts = [
                json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {".*": {"bits": 8}}}),
                json!({"group_size": -1, "bits": 2, "mode": "nvfp4"}),
                json!({"targets": ["re:.*"], "format": "int-quantized", "weights": {"num_bits": 8, "strategy": "tensor"}}),
                json!([1, 3]),
                json!(1u64 << 40),
            ];
            mutated(random, &serde_json::from_slice(original).expect("JSON"), &parts)
        }
        false => bytes(random, original, 6000),
    };
    let folder = base.folder.join("model");
    // The other folders' files say something else.
    QUANTIZED.iter().for_each(|name| _ = std::fs::remove_file(folder.join(name)));
    use_model(&base.with(files, name, &case));
}

fn adapter(base: &Base, random: &mut Random) {
    let name = *random.pick(&["adapter_config.json", "adapter_model.safetensors"]);
    let case = match name {
        "adapter_config.json" => {
            let parts = [
                json!({"q_proj": 2, "(": 1}),
                json!({"(.*)*x": 1e300, "v_proj": -0.0}),
                json!(["q_proj", ""]),
                json!("pissa"),
                json!(u64::MAX),
            ];
            mutated(random, &json_of(&base.adapter, name), &parts)
        }
        _ => {
            let weights = base.adapter.iter().find(|(known, _)| *known == name);
            bytes(random, &weights.expect("weights").1, 2000)
        }
    };
    let folder = base.with(&base.adapter, name, &case);
    let Ok(adapters) = Adapters::read(&folder) else { return };
    let nano = Checkpoint::open("embedded:nano-llama").expect("a model");
    if adapters.check(nano.config()).is_ok() {
        for pair in &adapters.pairs {
            let merged = adapters.merged(pair, &vec![0.5; pair.inputs * pair.outputs]);
            assert_eq!(merged.len(), pair.inputs * pair.outputs);
        }
    }
    let again = base.folder.join("again");
    std::fs::create_dir_all(&again).expect("a folder");
    adapters.write(&again, nano.config()).expect("a valid adapter is written");
    assert_eq!(Adapters::read(&again).expect("what was written").pairs, adapters.pairs);
}

fn training(base: &Base, random: &mut Random) {
    let lines = [
        "{\"text\": \"Stocks rose\", \"label\": \"yes\"}\n{\"text\": \"é\"}\n",
        "{\"instruction\": \"Add.\", \"input\": \"1\", \"output\": \"2\"}\n{\"prompt\": \"a \", \"completion\": \" b\"}\n\n",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"ho</s>\"}]}\n",
        "{\"question\": \"Why?\", \"answer\": \"So\"}\n{\"prompt\": \"<s>\", \"response\": \"</s></s>\"}\n",
        "{\"prompt\": \"One\", \"chosen\": \" two\", \"rejected\": \"\"}\n{\"chosen\": \"a\", \"rejected\": [{\"role\": \"user\"}]}\n",
        "{\"text\": \"Stocks rose\", \"label\": 1}\n{\"text\": \"fell\", \"label\": \"b\"}\n",
    ];
    let table = "question,answer\n\"1, 2\",x\n3,y\n";
    let folder = base.folder.join("training");
    std::fs::create_dir_all(&folder).expect("a folder");
    let text: String = (0..=random.below(6)).map(|_| *random.pick(&lines)).collect();
    let (name, original) = *random.pick(&[
        ("data.jsonl", text.as_str()),
        ("data.jsonl", text.as_str()),
        ("data.csv", table),
        ("data.txt", text.as_str()),
        ("data", text.as_str()),
    ]);
    let case = match random.once_in(3) {
        true => original.as_bytes().to_vec(),
        false => bytes(random, original.as_bytes(), 1000),
    };
    let path = folder.join(name);
    std::fs::write(&path, &case).expect("a file");
    let weights = ["", "@2", "@0.000001", "@0", "@1e9", "@"];
    let dataset = Dataset {
        data: (0..=random.below(2))
            .map(|_| format!("{}{}", path.display(), random.pick(&weights)))
            .collect(),
        length: *random.pick(&[2, 3, 8, 64, 4096]),
        pack: random.once_in(2),
        mask_prompt: random.once_in(2),
        held_out: *random.pick(&[0.0, 0.3, 0.99, 1.0, 5.0]),
        shuffle: random.once_in(2),
        label_noise: 0.0,
        noise_seed: None,
    };
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let nano = || Checkpoint::open("embedded:nano-llama").and_then(|model| model.tokenizer());
    let mut tokenizer = TOKENIZER.get_or_init(|| nano().expect("a tokenizer")).clone();
    // A process for each conversation would be most of the time.
    tokenizer.chat_template =
        random.once_in(20).then(|| "{% for m in messages %}{{ m.content }}{% endfor %}".into());
    let seed = random.below(9) as u64;
    let labels = ["a", "b"].map(String::from);
    let noisy = Dataset { label_noise: 0.5, ..dataset.clone() };
    let labels = if random.once_in(2) { &labels[..1] } else { &labels[..] };
    let pooling = *random.pick(&[Pooling::Last, Pooling::First]);
    if let Ok(examples) = Examples::texts(&noisy, (labels, pooling), &tokenizer, seed) {
        let (batch, _) = examples.batch(&examples.start(), 1).expect("a batch");
        assert_eq!(batch.ids.len(), batch.sequences * dataset.length);
        for row in batch.scored.chunks(dataset.length) {
            assert_eq!(row.iter().filter(|read| **read).count(), 1, "{row:?}");
        }
        let _ = examples.held_out(3);
    }
    let Ok(examples) = Examples::read(&dataset, &tokenizer, seed) else { return };
    let mut position = examples.start();
    for _ in 0..4 {
        let sequences = 1 + random.below(examples.rows_per_epoch());
        let (batch, next) = examples.batch(&position, sequences).expect("a batch");
        assert_eq!(batch.ids.len(), sequences * dataset.length);
        assert_eq!(batch.scored.len(), batch.ids.len());
        for row in batch.scored.chunks(dataset.length) {
            assert!(!row[0] && row.iter().any(|scored| *scored), "{row:?}");
        }
        position = next;
    }
    let file = bytes(random, &serde_json::to_vec(&position).expect("JSON"), 200);
    if let Ok(position) = serde_json::from_slice::<Position>(&file) {
        let _ = examples.batch(&position, 1);
    }
    let _ = examples.held_out(3);
}
