//! The tokenizer: truth from the `tokenizers` and `sentencepiece` packages, round trips, hostile metadata, templates.

use std::path::Path;

use libtest_mimic::Trial;
use lopper::error::Error;
use lopper::formats::gguf::{Array, Value};
use lopper::text::{HfFiles, StoredTokenizer, Tokenizer};
use serde_json::Value as Json;

pub fn trials() -> Vec<Trial> {
    suite!("text":
        byte_level_kinds, byte_level_from_gguf, sentencepiece_equals, sentencepiece_round_trip, families_round_trip, runs_of_blanks,
        decode_gives_text_back, stream_equals_decode, stream_of_broken_bytes, bos_once, eos_lists,
        special_token_forms, declared_elsewhere, python_json, every_pre_kind, cuts_as_llama_cpp, unknown_kind_passes_through, byte_fallback_forms,
        pieces_equal_the_whole, first_tokens_only, special_tokens_as_text, tiny_llama_to_gguf, padded_vocabulary, originals_unchanged, gguf_to_hf_files,
        spelled_kinds, unigram_pieces, wrong_pieces)
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
    let none = HfFiles { generation_config: Some(br#"{"eos_token_id": 99999}"#), ..files };
    assert_eq!(Tokenizer::from_hf(Path::new("folder"), none).unwrap().eos, [0, 3]);
    let bad = HfFiles { generation_config: Some(br#"{"eos_token_id": "x"}"#), ..files };
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
    let config = serde_json::json!({"eos_token": "<no such token>", "pad_token": "[PAD]"});
    let without = from_document(&fixture("qwen2")["tokenizer"], &config).unwrap();
    assert_eq!((without.eos.as_slice(), without.pad), (&[][..], None));
    assert_eq!(without.vocab_size, tokenizer.vocab_size);
    let config = serde_json::json!({"eos_token": 7});
    let refused = from_document(&fixture("qwen2")["tokenizer"], &config);
    assert!(matches!(refused, Err(Error::Key { .. })));
}

/// Tokens that only the files beside tokenizer.json declare are tokens, as far as the model has rows for them.
fn declared_elsewhere() {
    let document = fixture("qwen2")["tokenizer"].clone();
    let size = from_fixture("qwen2").vocab_size;
    let text = document.to_string();
    let load = |config: &str, tokenizer_config: Json, added: Option<Json>| {
        let (tokenizer_config, added) =
            (tokenizer_config.to_string(), added.map(|json| json.to_string()));
        let files = HfFiles {
            tokenizer_json: text.as_bytes(),
            tokenizer_config: Some(tokenizer_config.as_bytes()),
            added_tokens: added.as_ref().map(|text| text.as_bytes()),
            config: Some(config.as_bytes()),
            ..HfFiles::default()
        };
        Tokenizer::from_hf(Path::new("folder"), files).unwrap()
    };
    let rows = |count: usize| format!(r#"{{"vocab_size": {count}}}"#);
    let token = |content: &str, special: bool| {
        serde_json::json!({"content": content, "special": special, "lstrip": false,
        "rstrip": false, "normalized": false, "single_word": false})
    };
    let (first, second) = (size as u32, size as u32 + 1);
    let decoder = serde_json::json!({"added_tokens_decoder": {
        (second.to_string()): token("<two>", false), (first.to_string()): token("<one>", true)}});
    let by_map = serde_json::json!({"<two>": second, "<one>": first});
    let by_role = serde_json::json!({"eos_token": "<one>", "additional_special_tokens": ["<two>"]});
    for (config, added) in
        [(decoder, None), (serde_json::json!({}), Some(by_map)), (by_role.clone(), None)]
    {
        let tokenizer = load(&rows(size + 2), config, added);
        assert_eq!(tokenizer.encode("<one><two>", false).unwrap(), [first, second]);
        assert_eq!(tokenizer.vocab_size, size + 2);
        let metadata = tokenizer.to_gguf_metadata(size + 2).unwrap();
        let tokens = get(&metadata, "tokenizer.ggml.tokens").as_strings().unwrap();
        assert_eq!(tokens[size..], ["<one>", "<two>"]);
        assert_eq!(
            gguf(&metadata).unwrap().encode("a<two><one>", false).unwrap()[1..],
            [second, first]
        );
    }
    // One row: the first has a place. None: neither, and the text is spelled as before.
    let tokenizer = load(&rows(size + 1), by_role.clone(), None);
    assert_eq!((tokenizer.eos.as_slice(), tokenizer.vocab_size), (&[first][..], size + 1));
    let tokenizer = load(&rows(size), by_role, None);
    assert!(tokenizer.eos.is_empty());
    let spelled = from_fixture("qwen2").encode("<one><two>", false).unwrap();
    assert_eq!(tokenizer.encode("<one><two>", false).unwrap(), spelled);
}

/// Python writes numbers that are no JSON.
fn python_json() {
    let document = fixture("llama-bpe")["tokenizer"].to_string();
    let files = HfFiles {
        tokenizer_json: document.as_bytes(),
        tokenizer_config: Some(br#"{"eos_token": "<|eot_id|>", "x": NaN, "model_max_length": 1e400, "y": "NaN: -Infinity"}"#),
        generation_config: Some(b"\xef\xbb\xbf{\"eos_token_id\": [1, 2], \"max_length\": Infinity, \"min\": [-Infinity, -1e999]}"),
        ..HfFiles::default()
    };
    assert_eq!(Tokenizer::from_hf(Path::new("folder"), files).unwrap().eos, [1, 2, 3]);
    let empty = HfFiles { generation_config: Some(b""), ..files };
    assert_eq!(Tokenizer::from_hf(Path::new("folder"), empty).unwrap().eos, [3]);
    let broken = HfFiles { tokenizer_config: Some(br#"{"a": NaNa}"#), ..files };
    assert!(Tokenizer::from_hf(Path::new("folder"), broken).is_err());
}

/// llama.cpp's names for pre-tokenizers, each loaded, and words by those that cut differently.
fn every_pre_kind() {
    let metadata =
        from_fixture("gpt-2").to_gguf_metadata(from_fixture("gpt-2").vocab_size).unwrap();
    let with = |pre: &str| {
        let mut pairs = metadata.clone();
        pairs.iter_mut().find(|(key, _)| key == "tokenizer.ggml.pre").unwrap().1 =
            Value::String(pre.into());
        gguf(&pairs).unwrap_or_else(|error| panic!("{pre}: {error}"))
    };
    let names = "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert roberta-bpe jina-es \
        jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code smollm starcoder refact command-r codeshell exaone minerva-7b \
        mellum2 llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano smaug-bpe dbrx glm4 chatglm-bpe \
        qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2 qwen35 tekken gpt-4o llama4 kanana2 talkie \
        minimax-m2 granite-embed-multi-97m tiny_aya cohere2moe youtu deepseek-llm deepseek-coder deepseek-v3 hunyuan-dense \
        joyai-llm hy_v4 spark2_5 afmoe falcon bloom poro-chat gpt3-finnish viking chameleon jais-2 kimi-k2 superbpe bailingmoe \
        bailingmoe2 llada-moe seed-coder ufakzeka laguna exaone-moe minicpm5 default";
    let text = "Hello world's 12345 tests, don't…\n\n  École 中文テスト 한국어 3.14\t\t!!! ÀB x_y\r\n end  ";
    for name in names.split_whitespace() {
        let tokenizer = with(name);
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
        // A folder made of it cuts alike.
        assert_eq!(
            from_files(&tokenizer.to_hf_files().unwrap()).encode(text, false).unwrap(),
            ids,
            "{name}"
        );
    }
}

/// The cuts of llama.cpp's kinds, by its own ids.
fn cuts_as_llama_cpp() {
    let json: Json = serde_json::from_slice(&read("tokenizers/cuts.json")).unwrap();
    let strings = |key: &str| Array::String(serde_json::from_value(json[key].clone()).unwrap());
    let kinds = json["ids"].as_object().unwrap();
    assert!(kinds.len() > 25);
    for (kind, ids) in kinds {
        let metadata = [
            text("tokenizer.ggml.model", "gpt2"),
            text("tokenizer.ggml.pre", kind),
            list("tokenizer.ggml.tokens", strings("tokens")),
            list("tokenizer.ggml.merges", strings("merges")),
        ];
        let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
        let made = gguf(&metadata).unwrap().encode(json["text"].as_str().unwrap(), false).unwrap();
        assert_eq!(made, ids, "{kind}");
    }
}

/// Vocabularies of text with merges: spaces are `▁`, lines stand alone, what no token spells is bytes.
fn spelled_kinds() {
    let words = "<unk> <bos> <0x0A> <0xC3> <0xA9> ▁ a b ▁a ▁ab ab \n\n \n";
    let tokens: Vec<String> = words.split(' ').map(|word| word.replace("\\n", "\n")).collect();
    let merges = ["a b", "▁ a", "▁ ab"].map(String::from).to_vec();
    let kinds = [2, 3, 6, 6, 6, 1, 1, 1, 1, 1, 1, 4, 1];
    let with = |model: &str, pre: Option<&str>| {
        let mut metadata = vec![
            text("tokenizer.ggml.model", model),
            list("tokenizer.ggml.tokens", Array::String(tokens.clone())),
            list("tokenizer.ggml.merges", Array::String(merges.clone())),
            list("tokenizer.ggml.token_type", Array::I32(kinds.to_vec())),
            ("tokenizer.ggml.bos_token_id".into(), Value::U32(1)),
            ("tokenizer.ggml.unknown_token_id".into(), Value::U32(0)),
            ("tokenizer.ggml.add_bos_token".into(), Value::Bool(false)),
        ];
        metadata.extend(pre.map(|pre| text("tokenizer.ggml.pre", pre)));
        gguf(&metadata)
    };
    for (model, pre, adds_bos) in [
        ("gemma4", None, true),
        ("gpt2", Some("gemma4"), true),
        ("gpt2", Some("granite-embed-multi-311m"), false),
        ("gpt2", Some("sarvam-moe"), false),
    ] {
        let tokenizer = with(model, pre).unwrap_or_else(|error| panic!("{model} {pre:?}: {error}"));
        // ▁ab by merges of rank 0 and 2; é in bytes; a line's end before the next line's first word.
        let said = " ab aé  b\nab\n\na";
        let ids = [9, 8, 3, 4, 5, 5, 7, 12, 10, 11, 6];
        assert_eq!(tokenizer.encode(said, false).unwrap(), ids, "{model} {pre:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), said);
        let first = tokenizer.encode("a", true).unwrap();
        assert_eq!(first, if adds_bos { vec![1, 6] } else { vec![6] }, "{model} {pre:?}");
        let again = from_files(&tokenizer.to_hf_files().unwrap());
        assert_eq!(again.encode(said, false).unwrap(), ids, "{model} {pre:?}, as a folder");
    }
    let error = with("gpt2", Some("whitespace")).map(drop).expect_err("no bytes").to_string();
    assert!(error.contains("whitespace") && error.contains("no tokens for bytes"), "{error}");
}

/// Work on weights gives a tokenizer on as it is, be it one that nobody here can read.
fn unknown_kind_passes_through() {
    let mut metadata = sentencepiece();
    metadata.push(text("tokenizer.ggml.pre", "klingon"));
    metadata.push(("tokenizer.ggml.bos_token_id".into(), Value::U32(u32::MAX)));
    metadata[0] = text("tokenizer.ggml.model", "klingon");
    let stored = StoredTokenizer::of_gguf(Path::new("m.gguf"), &metadata);
    assert_eq!(stored.to_gguf_metadata(7).unwrap(), metadata);
    assert!(
        matches!(stored.read(), Err(Error::Unsupported { .. })) && stored.to_hf_files().is_err()
    );
    let files = vec![
        ("tokenizer.json", b"{".to_vec()),
        ("added_tokens.json", b"NaN".to_vec()),
        ("config.json", vec![]),
    ];
    let stored = StoredTokenizer::of_folder(Path::new("m"), files.clone());
    assert_eq!(stored.to_hf_files().unwrap(), files[..2]);
    assert!(stored.read().is_err() && stored.to_gguf_metadata(7).is_err());
}

/// Whether a vocabulary spells bytes as characters is not what `byte_fallback` says.
fn byte_fallback_forms() {
    let mut document = fixture("gpt-2")["tokenizer"].clone();
    document["model"]["byte_fallback"] = true.into();
    let tokenizer = from_document(&document, &serde_json::json!({})).unwrap();
    let metadata = tokenizer.to_gguf_metadata(tokenizer.vocab_size).unwrap();
    assert_eq!(get(&metadata, "tokenizer.ggml.model").as_str(), Some("gpt2"));
    check_cases(&gguf(&metadata).unwrap(), &cases(&fixture("gpt-2")));
    // Without byte tokens what cannot be spelled is the unknown token.
    let pairs = vec![
        text("tokenizer.ggml.model", "llama"),
        list(
            "tokenizer.ggml.tokens",
            Array::String(["<unk>", "<s>", "</s>", "▁", "a", "▁a"].map(String::from).into()),
        ),
        list("tokenizer.ggml.scores", Array::F32(vec![0.0, 0.0, 0.0, -1.0, -2.0, 0.0])),
        list("tokenizer.ggml.token_type", Array::I32(vec![2, 3, 3, 1, 1, 1])),
    ];
    let first = gguf(&pairs).unwrap();
    assert_eq!(first.encode("a é", false).unwrap(), [5, 3, 0]);
    let mut files = first.to_hf_files().unwrap();
    let mut document: Json = serde_json::from_slice(&files[0].1).unwrap();
    document["model"]["byte_fallback"] = false.into();
    files[0].1 = document.to_string().into_bytes();
    let second = from_files(&files);
    let metadata = second.to_gguf_metadata(6).unwrap();
    assert_eq!(get(&metadata, "tokenizer.ggml.model").as_str(), Some("llama"));
    assert_eq!(gguf(&metadata).unwrap().encode("a é", false).unwrap(), [5, 3, 0]);
}

/// A text of many pieces, in which letters, digits, marks, blanks and line breaks meet in every order.
fn long_text(seed: u64) -> String {
    let parts = [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "a",
        "bc",
        "Def",
        "é",
        "中文",
        "한",
        "1",
        "2345",
        "'s",
        "’",
        ".",
        "…",
        "-",
        "_",
        "<s>",
        "</s>",
        "<|endoftext|>",
        "\u{301}",
        "😀",
        "ä b",
        "x y z",
        "字\n字",
        "ok\nok",
    ];
    let mut state = seed;
    let mut text = String::new();
    while text.len() < 120_000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        text.push_str(parts[(state >> 33) as usize % parts.len()]);
    }
    text
}

fn pieces_equal_the_whole() {
    let sentencepiece = gguf(&sentencepiece()).unwrap();
    let mut tokenizers: Vec<Tokenizer> = BYTE_LEVEL.map(from_fixture).into();
    tokenizers.extend(["mistral", "gemma3"].map(|name| from_files(&family(name))));
    tokenizers.push(sentencepiece);
    for (seed, tokenizer) in tokenizers.iter().enumerate() {
        let text = long_text(seed as u64);
        let document = &tokenizer.to_hf_files().unwrap()[0].1;
        let whole = tokenizers::Tokenizer::from_bytes(document)
            .unwrap()
            .encode(text.as_str(), false)
            .unwrap();
        let (ids, ends) = tokenizer.encode_with_ends(&text, false, usize::MAX).unwrap();
        assert!(ids == whole.get_ids(), "tokenizer {seed}");
        assert!(ids == tokenizer.encode(&text, false).unwrap());
        let mut place = 0;
        for (end, (_, expected)) in ends.iter().zip(whole.get_offsets()) {
            place = place.max(*expected);
            // The document's own post-processor may leave spaces out of offsets.
            assert!(end.abs_diff(place) <= 4, "tokenizer {seed}: {end} {place}");
        }
        assert_eq!(ends.last(), Some(&text.len()));
    }
}

fn first_tokens_only() {
    let tokenizer = from_fixture("llama-bpe");
    let text = "one two three ".repeat(1_000_000);
    let start = std::time::Instant::now();
    let ids = tokenizer.encode_first(&text, false, 64).unwrap();
    assert_eq!(ids, tokenizer.encode(&text[..2000], false).unwrap()[..64]);
    assert!(start.elapsed().as_secs() < 5, "the rest of the text is not looked at");
    assert_eq!(tokenizer.encode_with_ends(&text, false, 64).unwrap().1.len(), 64);
}

/// llama-perplexity's way with `<s>` in a text.
fn special_tokens_as_text() {
    let tokenizer = gguf(&sentencepiece()).unwrap();
    assert!(tokenizer.encode("a</s>b", false).unwrap().contains(&2));
    let plain = tokenizer.without_specials_in_text();
    let ids = plain.encode("<s>a</s>b<unk>", true).unwrap();
    assert!(ids[0] == 1 && !ids[1..].iter().any(|id| [0, 1, 2].contains(id)), "{ids:?}");
    assert_eq!(plain.decode(&ids[1..], false).unwrap(), "<s>a</s>b<unk>");
    // User-defined tokens are looked for.
    let mut pairs = sentencepiece();
    pairs.retain(|(key, _)| key != "tokenizer.ggml.token_type");
    let mut types: Vec<i32> =
        serde_json::from_value(fixture("llama")["token_type"].clone()).unwrap();
    types[2] = 4;
    pairs.push(list("tokenizer.ggml.token_type", Array::I32(types)));
    assert!(
        gguf(&pairs)
            .unwrap()
            .without_specials_in_text()
            .encode("a</s>b", false)
            .unwrap()
            .contains(&2)
    );
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

/// The tokenizer of a folder with a `spiece.model` and a `config.json`.
fn from_pieces(pieces: Vec<u8>, config: &Json) -> Result<Tokenizer, Error> {
    let settings =
        serde_json::json!({"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"});
    let files = vec![
        ("spiece.model", pieces),
        ("tokenizer_config.json", settings.to_string().into_bytes()),
        ("config.json", config.to_string().into_bytes()),
    ];
    StoredTokenizer::of_folder(Path::new("fixture"), files).read()
}

/// A Unigram vocabulary gives the ids that sentencepiece gives, T5's tokens for gaps stand behind it, and EOS behind what an encoder
/// reads.
fn unigram_pieces() {
    let pieces = read("tokenizers/spiece.model");
    let plain = from_pieces(pieces.clone(), &serde_json::json!({})).unwrap();
    let fixture = fixture("spiece");
    for (text, ids) in cases(&fixture) {
        assert_eq!(plain.encode(&text, true).unwrap(), ids, "{text:?}");
    }
    let spelled: Vec<(String, f32)> = serde_json::from_value(fixture["pieces"].clone()).unwrap();
    assert_eq!(plain.vocab_size, spelled.len());
    for (id, (piece, _)) in (0..).zip(&spelled) {
        assert_eq!(plain.token(id).as_ref(), Some(piece));
    }
    assert_eq!((plain.decoder_start, plain.gap(), plain.add_eos), (None, None, false));
    let config = serde_json::json!({"is_encoder_decoder": true, "decoder_start_token_id": 0});
    let paired = from_pieces(pieces, &config).unwrap();
    let last = spelled.len() as u32 + 99;
    assert_eq!((paired.decoder_start, paired.gap()), (Some(0), Some(last)));
    assert_eq!(paired.token(last - 99).as_deref(), Some("<extra_id_99>"));
    let union = plain.encode("the union", true).unwrap();
    assert_eq!(paired.encode_source("the union").unwrap(), [&union[..], &[1]].concat());
    assert_eq!(paired.encode_source("the union</s>").unwrap(), [&union[..], &[1]].concat());
    assert_eq!(paired.encode("<extra_id_0>", true).unwrap(), [last]);
    assert_eq!(paired.decode(&union, true).unwrap(), "the union");
    let (context, behind) = paired.encode_continuation("the union ", "is", false).unwrap();
    assert_eq!((context, behind), ([&union[..], &[1]].concat(), plain.encode("is", true).unwrap()));
}

/// Any end of the file, and any byte in front, is an error or a vocabulary, and no panic.
fn wrong_pieces() {
    let pieces = read("tokenizers/spiece.model");
    let refused = |bytes: Vec<u8>, said: &str| {
        let text = match from_pieces(bytes, &serde_json::json!({})) {
            Ok(_) => "it was read".to_string(),
            Err(error) => error.to_string(),
        };
        assert!(text.contains(said), "{text}");
    };
    refused(Vec::new(), "0 pieces");
    refused(b"no model at all".to_vec(), "spiece.model");
    refused(vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], "bytes");
    refused(vec![0xff; 20], "64 bits");
    refused(vec![0x0a, 2, 0x12, 1], "spiece.model");
    // A piece without a type for what is unknown.
    refused(vec![0x0a, 3, 0x0a, 1, b'a'], "unknown");
    // Byte-pair encoding.
    refused([&[0x12, 2, 0x18, 2][..], &pieces[..20]].concat(), "spiece.model");
    for end in (0..400).step_by(7) {
        let _ = from_pieces(pieces[..end].to_vec(), &serde_json::json!({}));
    }
    for place in 0..60 {
        let mut bytes = pieces[..pieces.len().min(6000)].to_vec();
        bytes[place] ^= 0x55;
        let _ = from_pieces(bytes, &serde_json::json!({}));
    }
}
