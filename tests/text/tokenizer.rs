//! The tokenizer: truth from the `tokenizers` and `sentencepiece` packages, round trips, hostile metadata, templates.

use std::path::Path;

use libtest_mimic::Trial;
use lopper::error::Error;
use lopper::formats::gguf::{Array, Value};
use lopper::text::{HfFiles, Tokenizer};
use serde_json::Value as Json;

pub fn trials() -> Vec<Trial> {
    suite!("text":
        byte_level_kinds, byte_level_from_gguf, sentencepiece_equals, sentencepiece_round_trip, families_round_trip, runs_of_blanks,
        decode_gives_text_back, stream_equals_decode, stream_of_broken_bytes, bos_once, eos_lists,
        special_token_forms, tiny_llama_to_gguf, padded_vocabulary, originals_unchanged, gguf_to_hf_files)
}

const BYTE_LEVEL: [&str; 5] = ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"];

fn read(name: &str) -> Vec<u8> {
    std::fs::read(Path::new("assets").join(name)).unwrap()
}

pub fn fixture(name: &str) -> Json {
    serde_json::from_slice(&read(&format!("tokenizers/{name}.json"))).unwrap()
}

fn cases(fixture: &Json) -> Vec<(String, Vec<u32>)> {
    serde_json::from_value(fixture["cases"].clone()).unwrap()
}

pub fn from_document(document: &Json, config: &Json) -> Result<Tokenizer, Error> {
    let (document, config) = (document.to_string(), config.to_string());
    let files = HfFiles {
        tokenizer_json: document.as_bytes(),
        tokenizer_config: Some(config.as_bytes()),
        ..HfFiles::default()
    };
    Tokenizer::from_hf(Path::new("fixture"), files)
}

fn from_fixture(name: &str) -> Tokenizer {
    from_document(&fixture(name)["tokenizer"], &serde_json::json!({})).unwrap()
}

/// The `llama` fixture as GGUF metadata.
pub fn sentencepiece() -> Vec<(String, Value)> {
    let json = fixture("llama");
    let strings: Vec<String> = serde_json::from_value(json["tokens"].clone()).unwrap();
    let scores: Vec<f32> = serde_json::from_value(json["scores"].clone()).unwrap();
    let types: Vec<i32> = serde_json::from_value(json["token_type"].clone()).unwrap();
    vec![
        text("tokenizer.ggml.model", "llama"),
        list("tokenizer.ggml.tokens", Array::String(strings)),
        list("tokenizer.ggml.scores", Array::F32(scores)),
        list("tokenizer.ggml.token_type", Array::I32(types)),
    ]
}

pub fn text(key: &str, value: &str) -> (String, Value) {
    (key.into(), Value::String(value.into()))
}

pub fn list(key: &str, value: Array) -> (String, Value) {
    (key.into(), Value::Array(value))
}

pub fn gguf(metadata: &[(String, Value)]) -> Result<Tokenizer, Error> {
    Tokenizer::from_gguf(Path::new("fixture.gguf"), metadata)
}

fn get<'a>(metadata: &'a [(String, Value)], key: &str) -> &'a Value {
    &metadata.iter().find(|(k, _)| k == key).unwrap().1
}

fn check_cases(tokenizer: &Tokenizer, cases: &[(String, Vec<u32>)]) {
    for (text, ids) in cases {
        assert_eq!(&tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
    }
}

fn byte_level_kinds() {
    for kind in BYTE_LEVEL {
        check_cases(&from_fixture(kind), &cases(&fixture(kind)));
    }
}

fn byte_level_from_gguf() {
    for kind in BYTE_LEVEL {
        let tokenizer = from_fixture(kind);
        let metadata = tokenizer.to_gguf_metadata(tokenizer.vocab_size).unwrap();
        assert_eq!(get(&metadata, "tokenizer.ggml.pre").as_str(), Some(kind));
        check_cases(&gguf(&metadata).unwrap(), &cases(&fixture(kind)));
    }
}

fn sentencepiece_equals() {
    let tokenizer = gguf(&sentencepiece()).unwrap();
    assert_eq!((tokenizer.bos, tokenizer.unk), (Some(1), Some(0)));
    assert!(tokenizer.add_bos && tokenizer.is_eos(2));
    check_cases(&tokenizer, &cases(&fixture("llama")));
}

fn from_files(files: &[(&'static str, Vec<u8>)]) -> Tokenizer {
    let bytes = |name: &str| Some(files.iter().find(|(n, _)| *n == name)?.1.as_slice());
    let folder = HfFiles {
        tokenizer_json: bytes("tokenizer.json").unwrap(),
        tokenizer_config: bytes("tokenizer_config.json"),
        generation_config: bytes("generation_config.json"),
        ..HfFiles::default()
    };
    Tokenizer::from_hf(Path::new("folder"), folder).unwrap()
}

/// GGUF to a folder and back to a GGUF: ranks replace the scores, the ids stay.
fn sentencepiece_round_trip() {
    let first = gguf(&sentencepiece()).unwrap();
    let second = from_files(&first.to_hf_files().unwrap());
    assert!(second.add_bos);
    let metadata = second.to_gguf_metadata(second.vocab_size).unwrap();
    let model = get(&metadata, "tokenizer.ggml.model");
    assert_eq!(model.as_str(), Some("llama"));
    let key = "tokenizer.ggml.token_type";
    assert_eq!(get(&metadata, key), get(&sentencepiece(), key));
    let third = gguf(&metadata).unwrap();
    for tokenizer in [&second, &third] {
        assert_eq!(tokenizer.eos, first.eos);
        check_cases(tokenizer, &cases(&fixture("llama")));
    }
}

/// A folder's tokenizer as a GGUF, and that as a folder again.
fn there_and_back(first: &Tokenizer) -> [Tokenizer; 2] {
    let second = gguf(&first.to_gguf_metadata(first.vocab_size).unwrap()).unwrap();
    let third = from_files(&second.to_hf_files().unwrap());
    [second, third]
}

fn family(name: &str) -> [(&'static str, Vec<u8>); 3] {
    let names = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];
    names.map(|file| (file, read(&format!("families/{name}/{file}"))))
}

fn families_round_trip() {
    let texts = ["llama", "qwen2"].map(|kind| cases(&fixture(kind))).concat();
    let turns = "<start_of_turn>user\nhi<end_of_turn> <|im_start|>x<|im_end|><s>y</s>".to_string();
    let texts: Vec<String> = texts.into_iter().map(|(text, _)| text).chain([turns]).collect();
    for (name, bos, pre) in
        [("mistral", true, "default"), ("qwen2", false, "qwen2"), ("gemma3", true, "default")]
    {
        let first = from_files(&family(name));
        let metadata = first.to_gguf_metadata(first.vocab_size).unwrap();
        assert_eq!(get(&metadata, "tokenizer.ggml.pre").as_str(), Some(pre));
        assert_eq!(first.add_bos, bos, "{name}");
        for tokenizer in there_and_back(&first) {
            assert_eq!(
                (tokenizer.add_bos, tokenizer.bos, tokenizer.pad),
                (bos, first.bos, first.pad)
            );
            assert!(first.eos.iter().all(|&id| tokenizer.is_eos(id)), "{name}");
            for text in &texts {
                let ids = first.encode(text, true).unwrap();
                assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{name} {text:?}");
                let decoded = first.decode(&ids, false).unwrap();
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), decoded, "{name}");
            }
        }
    }
}

/// Gemma's document merges blanks to runs that are added tokens too, and lists the tab as itself and as a byte. A GGUF
/// has the runs with blanks in place of `▁` and says nothing of merging them.
fn runs_of_blanks() {
    let files = family("gemma3");
    let mut document: Json = serde_json::from_slice(&files[0].1).unwrap();
    let tab = document["model"]["vocab"]["<0x09>"].clone();
    document["model"]["vocab"]["\t"] = tab;
    let newline = document["model"]["vocab"]["<0x0A>"].clone();
    document["model"]["vocab"]["\n"] = newline;
    let mut merges = Vec::new();
    for (id, (left, right)) in (304..).zip([("▁", "▁"), ("▁▁", "▁"), ("\n", "\n"), ("\t", "\t")])
    {
        let whole = format!("{left}{right}");
        document["model"]["vocab"][&whole] = id.into();
        merges.push(serde_json::json!([left, right]));
        let token = serde_json::json!({"id": id, "content": whole, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": false});
        document["added_tokens"].as_array_mut().unwrap().push(token);
    }
    merges.append(document["model"]["merges"].as_array_mut().unwrap());
    document["model"]["merges"] = merges.into();
    let first = from_document(&document, &serde_json::from_slice(&files[1].1).unwrap()).unwrap();
    let metadata = first.to_gguf_metadata(first.vocab_size).unwrap();
    let tokens = get(&metadata, "tokenizer.ggml.tokens").as_strings().unwrap();
    assert_eq!(tokens[304..], ["  ", "   ", "\n\n", "\t\t"]);
    assert_eq!(tokens[first.token_id("<0x09>").unwrap() as usize], "<0x09>");
    let one = |text: &str| first.token_id(text).unwrap();
    let (space, b) = (one("▁"), one("b"));
    for tokenizer in there_and_back(&first).iter().chain([&first]) {
        let ids = |text: &str| tokenizer.encode(text, false).unwrap();
        assert_eq!(ids("b  b   b"), [b, 304, b, 305, b]);
        assert_eq!(ids("b\n\nb\t\tb"), [b, 306, b, 307, b]);
        assert_eq!(ids("\tb\n"), [one("<0x09>"), b, one("<0x0A>")]);
        assert_eq!(ids("b b"), [b, space, b]);
        assert_eq!(tokenizer.decode(&[b, 305, 306, b], false).unwrap(), "b   \n\nb");
    }
    // No key names the end of a turn; its text does.
    let turn = one("<end_of_turn>");
    assert!(!first.is_eos(turn) && gguf(&metadata).unwrap().is_eos(turn));
}

fn decode_gives_text_back() {
    for kind in ["gpt-2", "smollm", "llama-bpe", "tekken"] {
        let tokenizer = from_fixture(kind);
        for (text, ids) in cases(&fixture(kind)) {
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
    }
    let tokenizer = gguf(&sentencepiece()).unwrap();
    for (text, ids) in cases(&fixture("llama")) {
        if !text.contains('<') {
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
    }
    let ids = tokenizer.encode("hello</s>", true).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello");
    assert_eq!(tokenizer.decode(&[u32::MAX], true).unwrap(), "");
}

fn stream_equals_decode() {
    let sentencepiece = gguf(&sentencepiece()).unwrap();
    for kind in BYTE_LEVEL.into_iter().chain(["llama"]) {
        let byte_level = (kind != "llama").then(|| from_fixture(kind));
        let tokenizer = byte_level.as_ref().unwrap_or(&sentencepiece);
        for (text, ids) in cases(&fixture(kind)) {
            for skip in [false, true] {
                let mut stream = tokenizer.decode_stream(skip);
                let mut out = String::new();
                for &id in &ids {
                    let piece = stream.push(id).unwrap();
                    assert!(!piece.contains('\u{fffd}'), "{kind} {text:?}");
                    out += &piece;
                }
                out += &stream.finish().unwrap();
                assert_eq!(out, tokenizer.decode(&ids, skip).unwrap(), "{kind} {text:?}");
            }
        }
    }
}

/// A model that emits half characters for ever must neither stall the stream nor grow its window.
fn stream_of_broken_bytes() {
    for tokenizer in [from_fixture("gpt-2"), gguf(&sentencepiece()).unwrap()] {
        let byte = tokenizer.token_id("<0xE4>").or(tokenizer.token_id("ä")).unwrap();
        let mut stream = tokenizer.decode_stream(true);
        let mut out = String::new();
        for _ in 0..100 {
            out += &stream.push(byte).unwrap();
        }
        assert!(out.chars().count() > 90);
        let rest = stream.finish().unwrap();
        assert_eq!(stream.finish().unwrap(), "");
        assert!(out.chars().chain(rest.chars()).all(|c| c == '\u{fffd}'));
    }
}

fn bos_once() {
    let config = serde_json::json!({"bos_token": "<|begin_of_text|>"});
    let tokenizer = from_document(&fixture("llama-bpe")["tokenizer"], &config).unwrap();
    assert!(tokenizer.add_bos, "its post-processor adds BOS");
    let bos = tokenizer.bos.unwrap();
    let plain = tokenizer.encode("hi", false).unwrap();
    let begun = tokenizer.encode("hi", true).unwrap();
    assert_eq!(begun, [&[bos], plain.as_slice()].concat());
    assert_eq!(tokenizer.encode("<|begin_of_text|>hi", true).unwrap(), begun);
    assert_eq!(tokenizer.encode("<|begin_of_text|>hi", false).unwrap(), begun);
    assert_eq!(tokenizer.encode("", true).unwrap(), [bos]);
    let config = serde_json::json!({"bos_token": "<|begin_of_text|>", "add_bos_token": false});
    let tokenizer = from_document(&fixture("llama-bpe")["tokenizer"], &config).unwrap();
    assert_eq!(tokenizer.encode("hi", true).unwrap(), plain);
}

fn eos_lists() {
    let document = fixture("llama-bpe")["tokenizer"].to_string();
    let files = HfFiles {
        tokenizer_json: document.as_bytes(),
        tokenizer_config: Some(br#"{"eos_token": "<|eot_id|>"}"#),
        generation_config: Some(br#"{"eos_token_id": [1, 2, 3, 1]}"#),
        config: Some(br#"{"eos_token_id": 0}"#),
        ..HfFiles::default()
    };
    let tokenizer = Tokenizer::from_hf(Path::new("folder"), files).unwrap();
    assert_eq!(tokenizer.eos, [1, 2, 3]);
    let metadata = tokenizer.to_gguf_metadata(tokenizer.vocab_size).unwrap();
    assert_eq!(get(&metadata, "tokenizer.ggml.eos_token_id"), &Value::U32(3));
    assert_eq!(get(&metadata, "tokenizer.ggml.eot_token_id"), &Value::U32(1));
    assert_eq!(get(&metadata, "tokenizer.ggml.eom_token_id"), &Value::U32(2));
    assert_eq!(gguf(&metadata).unwrap().eos, [3, 1, 2]);
    let without = HfFiles { generation_config: None, ..files };
    assert_eq!(Tokenizer::from_hf(Path::new("folder"), without).unwrap().eos, [0, 3]);
    let bad = HfFiles { generation_config: Some(br#"{"eos_token_id": 99999}"#), ..files };
    assert!(Tokenizer::from_hf(Path::new("folder"), bad).is_err());
}

fn special_token_forms() {
    let config = serde_json::json!({
        "eos_token": {"content": "<|im_end|>", "special": true}, "pad_token": "<|endoftext|>",
        "bos_token": null, "chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": "y"}],
    });
    let tokenizer = from_document(&fixture("qwen2")["tokenizer"], &config).unwrap();
    assert_eq!((tokenizer.eos.as_slice(), tokenizer.pad), (&[2][..], Some(0)));
    assert_eq!(tokenizer.chat_template.as_deref(), Some("y"));
    assert!(!tokenizer.add_bos);
    let config = serde_json::json!({"eos_token": "<no such token>"});
    let refused = from_document(&fixture("qwen2")["tokenizer"], &config);
    assert!(matches!(refused, Err(Error::Key { .. })));
}

fn tiny_llama() -> Tokenizer {
    let (document, config) =
        (read("tiny-llama/tokenizer.json"), read("tiny-llama/tokenizer_config.json"));
    let files = HfFiles {
        tokenizer_json: &document,
        tokenizer_config: Some(&config),
        ..HfFiles::default()
    };
    Tokenizer::from_hf(Path::new("tiny-llama"), files).unwrap()
}

fn tiny_llama_to_gguf() {
    let tokenizer = tiny_llama();
    assert_eq!((tokenizer.bos, tokenizer.unk, tokenizer.pad), (Some(1), Some(0), Some(3)));
    assert!(!tokenizer.add_bos && tokenizer.eos == [2] && tokenizer.vocab_size == 4096);
    let metadata = tokenizer.to_gguf_metadata(4096).unwrap();
    assert_eq!(get(&metadata, "tokenizer.ggml.pre").as_str(), Some("gpt-2"));
    let back = gguf(&metadata).unwrap();
    let licence = String::from_utf8(read("tokenizers/README.md")).unwrap();
    let nasty = cases(&fixture("gpt-2")).into_iter().map(|(text, _)| text);
    for text in nasty.chain([licence, "<s>one</s> <extra_id_0>two".into()]) {
        assert_eq!(tokenizer.encode(&text, true).unwrap(), back.encode(&text, true).unwrap());
    }
}

fn padded_vocabulary() {
    let tokenizer = from_fixture("smollm");
    let size = tokenizer.vocab_size;
    let metadata = tokenizer.to_gguf_metadata(size + 3).unwrap();
    let tokens = get(&metadata, "tokenizer.ggml.tokens").as_strings().unwrap();
    assert_eq!(tokens.last(), Some(&format!("[PAD{}]", size + 2)));
    let back = gguf(&metadata).unwrap();
    assert_eq!(back.vocab_size, size + 3);
    check_cases(&back, &cases(&fixture("smollm")));
    assert!(matches!(tokenizer.to_gguf_metadata(size - 1), Err(Error::Tensor { .. })));
}

fn originals_unchanged() {
    let tokenizer = tiny_llama();
    let files = tokenizer.to_hf_files().unwrap();
    assert_eq!(files[0], ("tokenizer.json", read("tiny-llama/tokenizer.json")));
    assert_eq!(files[1], ("tokenizer_config.json", read("tiny-llama/tokenizer_config.json")));
    assert_eq!(files.len(), 2);
    let mut metadata = sentencepiece();
    metadata.push(text("tokenizer.ggml.whatever", "kept"));
    let tokenizer =
        gguf(&[metadata.clone(), vec![text("general.name", "not kept")]].concat()).unwrap();
    assert_eq!(tokenizer.to_gguf_metadata(tokenizer.vocab_size).unwrap(), metadata);
    assert!(tokenizer.to_gguf_metadata(tokenizer.vocab_size + 1).is_err());
}

fn gguf_to_hf_files() {
    let mut metadata = sentencepiece();
    metadata.push(text("tokenizer.chat_template", "{{ messages }}"));
    metadata.push(("tokenizer.ggml.eot_token_id".into(), Value::U32(3)));
    let files = gguf(&metadata).unwrap().to_hf_files().unwrap();
    let json = |at: usize| -> Json { serde_json::from_slice(&files[at].1).unwrap() };
    assert_eq!(files[1].0, "tokenizer_config.json");
    assert_eq!(json(1)["bos_token"], "<s>");
    assert_eq!(json(1)["add_bos_token"], true);
    assert_eq!(json(1)["chat_template"], "{{ messages }}");
    assert_eq!(files[2].0, "generation_config.json");
    assert_eq!(json(2)["eos_token_id"], serde_json::json!([2, 3]));
}
