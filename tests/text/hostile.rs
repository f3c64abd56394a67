//! The tokenizer on input that is broken or hostile, and chat templates, which are both programs and untrusted.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use libtest_mimic::Trial;
use lopper::error::Error;
use lopper::formats::gguf::{Array, Value};
use lopper::text::{HfFiles, Tokenizer};
use serde_json::{Value as Json, json};

use super::tokenizer::{fixture, from_document, gguf, list, sentencepiece, text};
pub fn trials() -> Vec<Trial> {
    suite!("text":
        unknown_kinds, word_pieces, hostile_metadata, hostile_documents, hostile_parts, keys_twice, contained_panics, costly_vocabularies,
        unrecognised_pre_tokenizer, chat_templates,
        python_in_templates, broken_templates, template_bombs, task_template_bombs)
}

fn strings(list_of: &[&str]) -> Array {
    Array::String(list_of.iter().map(|s| s.to_string()).collect())
}

/// The metadata with one pair replaced, added, or (with `None`) removed.
fn with(metadata: &[(String, Value)], key: &str, value: Option<Value>) -> Vec<(String, Value)> {
    let mut changed = metadata.to_vec();
    changed.retain(|(k, _)| k != key);
    changed.extend(value.map(|value| (key.to_string(), value)));
    changed
}

fn small_gpt2() -> Vec<(String, Value)> {
    vec![
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", "gpt-2"),
        list("tokenizer.ggml.tokens", strings(&["a", "b", "ab", "<e>"])),
        list("tokenizer.ggml.token_type", Array::I32(vec![1, 1, 1, 3])),
        list("tokenizer.ggml.merges", strings(&["a b"])),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(3)),
    ]
}

fn unknown_kinds() {
    assert_eq!(gguf(&small_gpt2()).unwrap().encode("ab<e>ba", true).unwrap(), [2, 3, 1, 0]);
    for (key, name) in [("tokenizer.ggml.model", "rwkv"), ("tokenizer.ggml.pre", "klingon")] {
        let changed = with(&small_gpt2(), key, Some(Value::String(name.into())));
        let Err(error @ Error::Unsupported { .. }) = gguf(&changed) else {
            panic!("{key} {name} was taken");
        };
        assert!(error.to_string().contains(name) && error.to_string().contains("known"));
    }
    for pre in ["default", "", "llama3", "starcoder"] {
        let changed = with(&small_gpt2(), "tokenizer.ggml.pre", Some(Value::String(pre.into())));
        assert!(gguf(&changed).is_ok());
    }
    assert!(gguf(&with(&small_gpt2(), "tokenizer.ggml.pre", None)).is_ok());
}

/// A vocabulary of words whose parts are marked in the other way than WordPiece does.
fn word_pieces() {
    let tokens = |list: &[&str]| {
        let mut pairs =
            with(&small_gpt2(), "tokenizer.ggml.model", Some(Value::String("bert".into())));
        pairs.retain(|(key, _)| !key.ends_with("token_type") && !key.ends_with("eos_token_id"));
        with(&pairs, "tokenizer.ggml.tokens", Some(Value::Array(strings(list))))
    };
    let read = gguf(&tokens(&["[UNK]", "▁rain", "y", "▁day"])).unwrap();
    assert_eq!(read.encode("Rainy DAY", false).unwrap(), [1, 2, 3]);
    let Err(error) = gguf(&tokens(&["[UNK]", "x", "▁##x"])) else { panic!("a word twice") };
    assert!(error.to_string().contains("`##x` twice"), "{error}");
}

fn hostile_metadata() {
    let good = small_gpt2();
    let pre = "tokenizer.ggml.";
    let bad: Vec<(&str, Option<Value>)> = vec![
        ("model", None),
        ("model", Some(Value::U32(1))),
        ("pre", Some(Value::Bool(true))),
        ("tokens", None),
        ("tokens", Some(Value::Array(strings(&[])))),
        ("tokens", Some(Value::Array(strings(&["a", "b", "ab"])))),
        ("tokens", Some(Value::Array(strings(&["a", "b", "ab", "a"])))),
        ("tokens", Some(Value::Array(Array::I32(vec![1, 2, 3, 4])))),
        ("token_type", Some(Value::Array(Array::I32(vec![1])))),
        ("token_type", Some(Value::Array(Array::F32(vec![1.0; 4])))),
        ("merges", None),
        ("merges", Some(Value::Array(strings(&["a c"])))),
        ("merges", Some(Value::Array(strings(&["b a"])))),
        ("merges", Some(Value::Array(strings(&["ab ab"])))),
        ("merges", Some(Value::Array(strings(&[""])))),
        ("merges", Some(Value::Array(strings(&[" "])))),
        ("merges", Some(Value::Array(strings(&["é"])))),
        ("merges", Some(Value::Array(strings(&["a "])))),
        ("padding_token_id", Some(Value::String("0".into()))),
        ("add_bos_token", Some(Value::U8(1))),
    ];
    for (key, value) in bad {
        let changed = with(&good, &format!("{pre}{key}"), value.clone());
        assert!(matches!(gguf(&changed), Err(Error::Key { .. })), "{key} {value:?}");
    }
    // Ids that name nothing are no reason to refuse a model.
    for id in [Value::U32(4), Value::U64(u64::MAX), Value::I32(-1), Value::U32(u32::MAX)] {
        for role in ["bos", "eos", "eot", "eom", "unknown", "padding"] {
            let key = format!("{pre}{role}_token_id");
            let tokenizer = gguf(&with(&good, &key, Some(id.clone()))).unwrap();
            assert_eq!((tokenizer.bos, tokenizer.unk, tokenizer.pad), (None, None, None));
            assert_eq!(tokenizer.eos, if role == "eos" { vec![] } else { vec![3] });
        }
    }
    let count = fixture("llama")["tokens"].as_array().unwrap().len();
    let mut not_numbers = vec![0.0; count];
    not_numbers[7] = f32::NAN;
    for scores in [None, Some(vec![0.0; 3]), Some(not_numbers)] {
        let value = scores.map(|scores| Value::Array(Array::F32(scores)));
        let changed = with(&sentencepiece(), "tokenizer.ggml.scores", value);
        assert!(matches!(gguf(&changed), Err(Error::Key { .. })));
    }
    for fine in [Array::F32(vec![0.0; count]), Array::F32(vec![f32::INFINITY; count])] {
        let changed = with(&sentencepiece(), "tokenizer.ggml.scores", Some(Value::Array(fine)));
        gguf(&changed).unwrap().encode("some text", true).unwrap();
    }
    long_tokens();
}

fn long_tokens() {
    let metadata = vec![
        text("tokenizer.ggml.model", "llama"),
        list("tokenizer.ggml.tokens", strings(&["a", &"a".repeat(100_000)])),
        list("tokenizer.ggml.scores", Array::F32(vec![0.0; 2])),
    ];
    assert!(matches!(gguf(&metadata), Err(Error::Key { .. })));
    // One token, without bytes and with BOS, EOS out of reach of the defaults.
    let metadata = vec![
        text("tokenizer.ggml.model", "llama"),
        list("tokenizer.ggml.tokens", strings(&[""])),
        list("tokenizer.ggml.scores", Array::F32(vec![0.0])),
    ];
    let tokenizer = gguf(&metadata).unwrap();
    assert_eq!((tokenizer.bos, tokenizer.add_bos, tokenizer.eos.len()), (None, false, 0));
    tokenizer.encode("anything", true).unwrap();
}

fn hostile_documents() {
    let mut document = fixture("gpt-2")["tokenizer"].clone();
    for merges in [
        serde_json::json!([["a", "no such token"]]),
        // The parts are tokens, the whole is longer than any token.
        serde_json::json!([["<|endoftext|>", "<|endoftext|>"]]),
        serde_json::json!([["a"]]),
        serde_json::json!(["ab"]),
        serde_json::json!([7]),
    ] {
        document["model"]["merges"] = merges;
        let refused = from_document(&document, &serde_json::json!({}));
        assert!(matches!(refused, Err(Error::Malformed { .. })));
    }
    for document in ["", "[]", "null", "{\"model\": 3}"] {
        let files = HfFiles { tokenizer_json: document.as_bytes(), ..HfFiles::default() };
        assert!(Tokenizer::from_hf(Path::new("folder"), files).is_err());
    }
}

/// The `gpt-2` fixture with one part replaced.
fn with_part(role: &str, part: Json) -> Result<Tokenizer, Error> {
    let mut document = fixture("gpt-2")["tokenizer"].clone();
    match role.split_once('.') {
        Some((outer, inner)) => document[outer][inner] = part,
        None => document[role] = part,
    }
    from_document(&document, &json!({}))
}

fn replace(pattern: Json, content: &str) -> Json {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

/// Parts that made the engine panic, abort or take all memory, at load or when a text came.
fn hostile_parts() {
    let token = |content: &str, normalized: bool| {
        json!([{"id": 0, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": normalized, "special": false}])
    };
    let nothing = json!({"type": "Sequence", "normalizers": [
        {"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "StripAccents"}]});
    let precompiled = |map: &str| json!({"type": "Precompiled", "precompiled_charsmap": map});
    let chain = |role: &str, step: Json| json!({"type": "Sequence", role: vec![step; 40]});
    let grows = replace(json!({"String": "a"}), "aa");
    let wordpiece = json!({"type": "WordPiece", "unk_token": "u", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 1_000_000, "vocab": {"u": 0, "a": 1}});
    let bad = [
        ("decoder", json!({"type": "Strip", "content": " ", "start": 0, "stop": 1_000_000})),
        ("decoder", json!({"type": "Strip", "content": " ", "start": u64::MAX, "stop": 0})),
        ("decoder", chain("decoders", grows.clone())),
        ("decoder", replace(json!({"String": ""}), "x")),
        ("decoder", json!({"type": "Whitespace"})),
        ("decoder", json!({})),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": -1})),
        ("pre_tokenizer", json!({"type": "Sequence"})),
        ("pre_tokenizer", json!([])),
        (
            "pre_tokenizer",
            chain("pretokenizers", json!({"type": "Whitespace"}))["pretokenizers"].clone(),
        ),
        ("normalizer", replace(json!({"String": ""}), "x")),
        ("normalizer", replace(json!({"Regex": ""}), "x")),
        ("normalizer", replace(json!({"Regex": r"\b"}), "x")),
        ("normalizer", replace(json!({"Regex": "x*"}), "yy")),
        ("normalizer", replace(json!({"Regex": "("}), "yy")),
        ("normalizer", chain("normalizers", grows)),
        ("normalizer", replace(json!({"Regex": "a"}), &"b".repeat(200))),
        ("normalizer", json!({"type": "Prepend", "prepend": "x".repeat(1000)})),
        ("normalizer", precompiled("/////w==")),
        ("normalizer", precompiled("")),
        ("normalizer", precompiled("!")),
        ("normalizer", precompiled("AAAAAA==")),
        // A block of one unit, which every byte leaves.
        ("normalizer", precompiled("BAAAAAEAAAA=")),
        ("normalizer", precompiled(&charsmap(5, "a\0"))),
        ("normalizer", precompiled(&charsmap(1, "é\0"))),
        ("normalizer", precompiled(&charsmap(0, &"a".repeat(500)))),
        ("added_tokens", token("", false)),
        ("added_tokens", json!({})),
        ("added_tokens", json!([7])),
        ("model", wordpiece),
        ("model", json!({"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]})),
        ("model", json!({"type": "Unigram", "vocab": {"a": 0}})),
        ("model", json!({"type": "BPE", "vocab": {"a": 0}})),
        ("model", json!({"type": "BPE", "vocab": {"a": 1e30}, "merges": []})),
        ("model", json!({"type": "WordLevel", "vocab": {"a": u32::MAX}, "unk_token": "a"})),
        ("model", json!({"vocab": {"a": 0}})),
        ("model.continuing_subword_prefix", json!("x".repeat(100))),
        ("model.end_of_word_suffix", json!(7)),
    ];
    for (role, part) in bad {
        let refused = with_part(role, part.clone());
        assert!(
            matches!(refused, Err(Error::Key { .. } | Error::Malformed { .. })),
            "{role} {part}"
        );
        assert!(refused.err().is_some_and(|error| error.to_string().len() < 1000));
    }
    let mut document = fixture("gpt-2")["tokenizer"].clone();
    document["normalizer"] = nothing;
    document["added_tokens"] = token("\u{301}", true);
    let refused = from_document(&document, &json!({})).err().expect("an added token of nothing");
    assert!(refused.to_string().contains("normalizes to nothing"), "{refused}");
    // What the post-processor says is read, not run: no template of it can end the program.
    for single in [
        json!([{"Sequence": {"id": "B", "type_id": 0}}]),
        json!([{"SpecialToken": {"id": "none", "type_id": 0}}]),
        json!("$A"),
    ] {
        let template = json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
        let nested = json!({"type": "Sequence", "processors": [{"type": "Sequence", "processors": [template]}]});
        for processor in [template, nested] {
            let tokenizer = with_part("post_processor", processor).unwrap();
            assert_eq!(
                tokenizer.decode(&tokenizer.encode("a b", true).unwrap(), false).unwrap(),
                "a b"
            );
        }
    }
    // Sound parts of the same kinds.
    let sound = [
        ("normalizer", precompiled(&charsmap(0, "b\0"))),
        ("normalizer", replace(json!({"Regex": " {2,}"}), " ")),
        (
            "decoder",
            json!({"type": "Sequence", "decoders": [{"type": "ByteLevel", "add_prefix_space": true,
            "trim_offsets": true, "use_regex": true}, {"type": "Strip", "content": " ", "start": 1, "stop": 1}]}),
        ),
        ("added_tokens", token("<x>", true)),
    ];
    for (role, part) in sound {
        with_part(role, part.clone()).unwrap_or_else(|error| panic!("{role} {part}: {error}"));
    }
    let mapped = with_part("normalizer", precompiled(&charsmap(0, "b\0"))).unwrap();
    assert_eq!(mapped.encode("xax", false).unwrap(), mapped.encode("xbx", false).unwrap());
}

/// A character map of SentencePiece that puts the text at `index` in the place of `a`.
fn charsmap(index: u32, texts: &str) -> String {
    let mut units = vec![0u32; 512];
    // The root's block is the first; `a` leads to the second, whose first unit is the leaf.
    units[97] = 97 | 1 << 8 | (97 ^ 256) << 10;
    units[256] = index;
    let mut bytes = 2048u32.to_le_bytes().to_vec();
    bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes.extend(texts.as_bytes());
    BASE64_STANDARD.encode(bytes)
}

/// Readers disagree on which of two equal keys counts: one checks the last, another builds each.
fn keys_twice() {
    let document = fixture("gpt-2")["tokenizer"].to_string();
    let model = r#"{"type":"BPE","continuing_subword_prefix":"x","vocab":{"a":0,"é":1},"merges":[["a","é"]]}"#;
    let within = document.replacen(r#""vocab":{"#, r#""vocab":{"a":0,"a":0,"#, 1);
    for twice in [document.replacen('{', &format!(r#"{{"model":{model},"#), 1), within] {
        let files = HfFiles { tokenizer_json: twice.as_bytes(), ..HfFiles::default() };
        let refused = Tokenizer::from_hf(Path::new("folder"), files).err().expect("equal keys");
        assert!(refused.to_string().contains("twice"), "{refused}");
    }
    let mut unchecked = fixture("gpt-2")["tokenizer"].clone();
    unchecked["model"] = serde_json::from_str(model).unwrap();
    assert!(from_document(&unchecked, &json!({})).is_err());
}

/// What shows only with the text that meets it is an error of that text.
fn contained_panics() {
    let before_q = with_part("normalizer", replace(json!({"Regex": "(?=q)"}), "x")).unwrap();
    before_q.encode("all is well", true).unwrap();
    assert!(matches!(before_q.encode("q", true), Err(Error::Malformed { .. })));
    assert!(matches!(before_q.encode_with_ends("q", true, 9), Err(Error::Malformed { .. })));
    before_q.encode("all is well", true).unwrap();
    let strip = json!({"type": "Sequence", "decoders": [
        replace(json!({"String": "Q"}), ""), {"type": "Strip", "content": " ", "start": 0, "stop": 1}]});
    let strip = with_part("decoder", strip).unwrap();
    let id = strip.token_id("Q").unwrap();
    assert!(matches!(strip.decode(&[id], false), Err(Error::Malformed { .. })));
    assert!(strip.decode_stream(false).push(id).is_err());
}

/// Tokens that are all parts of each other would be listed with all their splits.
fn costly_vocabularies() {
    let many: Vec<String> = (1..=511)
        .flat_map(|n| [n, n + 1].map(|m| "a".repeat(n) + &"b".repeat(512 - m.min(512))))
        .collect();
    let mut tokens: Vec<&str> = many.iter().map(String::as_str).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let mut longer = tokens.iter().map(|token| format!("{token}c")).collect::<Vec<_>>();
    longer.retain(|token| token.len() <= 512);
    let all: Vec<&str> = tokens.iter().copied().chain(longer.iter().map(String::as_str)).collect();
    let count = all.len();
    let metadata = vec![
        text("tokenizer.ggml.model", "llama"),
        list("tokenizer.ggml.tokens", strings(&all)),
        list("tokenizer.ggml.scores", Array::F32(vec![0.0; count])),
    ];
    let start = std::time::Instant::now();
    let refused = gguf(&metadata).err().expect("a vocabulary that costs too much");
    assert!(refused.to_string().contains("tokenizer.ggml.tokens"), "{refused}");
    assert!(start.elapsed().as_secs() < 5);
}

fn unrecognised_pre_tokenizer() {
    let mut document = fixture("llama-bpe")["tokenizer"].clone();
    document["normalizer"] = json!({"type": "NFD"});
    let mut other = fixture("gpt-2")["tokenizer"].clone();
    other["pre_tokenizer"] = serde_json::json!({"type": "Whitespace"});
    for document in [document, other] {
        let tokenizer = from_document(&document, &serde_json::json!({})).unwrap();
        let refused = tokenizer.to_gguf_metadata(tokenizer.vocab_size);
        assert!(matches!(refused, Err(Error::Unsupported { .. })));
    }
}

fn render(template: &str, messages: &[(&str, &str)]) -> Result<String, Error> {
    let mut tokenizer = gguf(&sentencepiece()).unwrap();
    tokenizer.chat_template = Some(template.into());
    tokenizer.render_chat(messages, true)
}

fn chat_templates() {
    let smollm = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let expected = "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(smollm, &[("user", "hi")]).unwrap(), expected);
    let llama = "{{ bos_token }}{% for m in messages %}\n  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}\n    {{- raise_exception('roles must alternate') }}\n  {% endif %}\n  {{- '[INST] ' + m.content.strip() + ' [/INST]' }}\n{% endfor %}{{ eos_token }}";
    assert_eq!(render(llama, &[("user", " hi ")]).unwrap(), "<s>[INST] hi [/INST]\n</s>");
    let error = render(llama, &[("assistant", "hi")]).unwrap_err();
    assert!(error.to_string().contains("roles must alternate"));
    // trim_blocks and lstrip_blocks: neither the indentation nor the newline of a block is text.
    assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\nc\n", &[]).unwrap(), "a\nb\nc");
}

fn python_in_templates() {
    for (template, expected) in [
        ("{{ 'x y'.split(' ')[1].upper() }}", "Y"),
        ("{{ 'a</think>b'.split('</think>')[-1].lstrip('\\n') }}", "b"),
        ("{{ 'ab'.startswith('a') and 'ab'.endswith(('x', 'b')) }}", "True"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{{ messages[0].get('name', 'none') }}", "none"),
        ("{{ {'b': [1, 'é<']} | tojson }}", "{\"b\": [1, \"é<\"]}"),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ strftime_now('%d %b %Y, %-H') }}", "26 Jul 2024, 0"),
        ("{{ 'aXb'.replace('X', '-').title() }}", "A-B"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        // Marks of what the assistant says are no text, and white space at them is as in other blocks.
        ("a {%- generation -%} {{ messages[0].content }} {%- endgeneration %} b", "ahi b"),
        ("{% generation %}\nx{% endgeneration %}{# {% generation %} #}", "x"),
        (
            "{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}",
            "{% generation %}{% generation %}",
        ),
        (
            "{{ 'a,b,c'.rsplit(',', 1)|join('|') }} {{ ' a b  c '.rsplit(none, 1)|join('|') }}",
            "a,b|c  a b|c",
        ),
        (
            "{{ 'a b c'.split(maxsplit=1)|join('|') }} {{ 'a,b'.split(sep=',')|join('|') }}",
            "a|b c a|b",
        ),
        ("{{ 'a:b:c'.partition(':') }}", "('a', ':', 'b:c')"),
        (
            "{{ 'a:b:c'.rpartition(':')|join('|') }} {{ 'x'.rpartition(':')|join('|') }}",
            "a:b|:|c ||x",
        ),
        ("{{ 'one two_2, three'|wordcount }} {{ '7'.zfill(3) }} {{ '-7'.zfill(4) }}", "3 007 -007"),
        ("{{ [1, {'a': 2}]|tojson(separators=(',', ':')) }}", "[1,{\"a\":2}]"),
        (
            "{{ {'b': 1, 'a': [2]}|tojson(sort_keys=true, indent=1) }}",
            "{\n \"a\": [\n  2\n ],\n \"b\": 1\n}",
        ),
        (
            "{{ 'é😀'|tojson(ensure_ascii=true) }}{{ []|tojson(indent=2) }}",
            "\"\\u00e9\\ud83d\\ude00\"[]",
        ),
        ("{{ messages|tojson }}", "[{\"role\": \"user\", \"content\": \"hi\"}]"),
        // Mappings keep the order in which they were made, as Python's do.
        (
            "{{ {'b': 1, 'a': {'z': 2, 'c': 3}, '0': 4}|tojson }}",
            "{\"b\": 1, \"a\": {\"z\": 2, \"c\": 3}, \"0\": 4}",
        ),
        (
            "{% set d = {'b': 1, 'a': 2, 'c': 0} %}{% for k in d %}{{ k }}{% endfor %}{% for k, v in d.items() %}{{ k ~ v }}{% endfor %}",
            "bacb1a2c0",
        ),
        (
            "{{ dict(z=1, y=2, x=3)|list|join }}{{ {'b': 1, 'a': 2}.keys()|list|join }}{{ {'b': 7, 'a': 5}.values()|list|join }}",
            "zyxba75",
        ),
        (
            "{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{% endfor %}{{ {'b': 1, 'a': 2} }}",
            "ab{'b': 1, 'a': 2}",
        ),
        (
            "{{ 'abcb'.rfind('b') }}{{ 'ab'.find('x') }}{{ 'aB'.swapcase() }}{{ 'a'|center(4) }}|",
            "3-1Ab a  |",
        ),
        ("{{ 'ab'.isalpha() }}{{ 'AB'.isupper() }}{{ 'a'.rjust(3, '.') }}", "TrueTrue..a"),
        ("{{ messages[0].nothing is defined }}{{ tools is none }}", "FalseTrue"),
    ] {
        assert_eq!(render(template, &[("user", "hi")]).unwrap(), expected, "{template}");
    }
}

/// Templates that overflow the stack, fill the memory or take for ever, each by another way.
fn bombs() -> Vec<String> {
    let grow = |step: &str| {
        format!("{{% set n = namespace(x='ab\ncd') %}}{}{{{{ n.x|length }}}}", step.repeat(60))
    };
    let nested = |open: &str, close: &str, depth: usize| open.repeat(depth) + &close.repeat(depth);
    let mut bombs = vec![
        "{% set n=namespace() %}{% set n.x=n %}{{n}}".to_string(),
        "{% set n=namespace(x=1) %}{% for i in range(90000) %}{% set n.x=[n.x] %}{% endfor %}{{n.x}}".into(),
        format!("{{{{ {}1 }}}}", "-".repeat(500_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(200_000)),
        format!("{{{{ {} }}}}", nested("[", "]", 300_000)),
        nested("{% if true %}", "{% endif %}", 30_000),
        grow("{% set n.x = n.x ~ n.x %}"),
        grow("{% set n.x = n.x + n.x %}"),
        grow("{% set n.x = n.x|replace('a', n.x) %}"),
        grow("{% set n.x = n.x.replace('a', n.x) %}"),
        grow("{% set n.x = [n.x, n.x]|join(n.x) %}"),
        grow("{% set n.x = n.x|indent(n.x|length) %}"),
        grow("{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
        "{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('aaaa') }}".into(),
    ];
    let much = [
        "'a'|indent(N, true)",
        "[1]|batch(N, 'x')|list",
        "[1]|slice(N)|list",
        "'a'|center(N)",
        "'a'.zfill(N)",
        "'a'.ljust(N)",
        "'a' * N",
        "'%Nd'|format(1)",
        "[1] * N",
        "'x'.expandtabs(N)",
    ];
    bombs.extend(much.iter().map(|call| format!("{{{{ {} }}}}", call.replace('N', "10000000000"))));
    // These take all the time there is.
    bombs.push("{% for i in range(100000) %}{{ range(100000)|sum }}{% endfor %}".into());
    bombs
}

fn template_bombs() {
    let mut tokenizer = gguf(&sentencepiece()).unwrap();
    for bomb in bombs() {
        let begin: String = bomb.chars().take(60).collect();
        tokenizer.chat_template = Some(bomb);
        let start = std::time::Instant::now();
        let refused = tokenizer.render_chat(&[("user", "hi")], true);
        assert!(matches!(refused, Err(Error::Key { .. })), "{begin}: {refused:?}");
        assert!(refused.err().is_some_and(|error| error.to_string().len() < 2000));
        assert!(start.elapsed().as_secs() < 8, "{begin}");
    }
    // And then all is as before.
    tokenizer.chat_template = Some("{{ messages[0].content }}".into());
    assert_eq!(tokenizer.render_chat(&[("user", "hi")], true).unwrap(), "hi");
}

fn task_template_bombs() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("data.jsonl"),
        "{\"q\": \"2 + 2\", \"a\": \"4\", \"n\": {\"z\": 1, \"b\": 2}}\n",
    )
    .unwrap();
    let task = |prompt: &str| {
        let file = folder.path().join("task.toml");
        let text = format!(
            "data = \"data.jsonl\"\nform = \"cloze\"\ntarget = \"{{{{ a }}}}\"\nprompt = {prompt:?}\n"
        );
        std::fs::write(&file, text).unwrap();
        lopper::data::read_task(file.to_str().unwrap(), None)
    };
    for bomb in bombs().iter().step_by(4) {
        let refused = task(bomb);
        assert!(matches!(refused, Err(Error::Malformed { .. } | Error::Key { .. })), "{refused:?}");
    }
    assert!(task("{{ none_such }}").err().unwrap().to_string().contains("fields: q, a, n"));
    let good = task("{{ q.upper() }} {{ n|tojson }}").unwrap();
    assert_eq!(good.items[0].query, "2 + 2 {\"z\": 1, \"b\": 2}");
}

fn broken_templates() {
    for template in [
        "{% for %}",
        "{{ messages[0].content.explode() }}",
        "{{ nothing.at.all }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}0123456789012345678901234567890123456789{% endfor %}",
        "{{ 'a' * 100000000000 }}",
        "{% include '/etc/passwd' %}",
        "{{ 'a'.split('') }}{{ ''.join() }}",
    ] {
        let Err(Error::Key { key, .. }) = render(template, &[("user", "hi")]) else {
            panic!("{template} rendered");
        };
        assert_eq!(key, "tokenizer.chat_template");
    }
    let none = gguf(&sentencepiece()).unwrap().render_chat::<&str, &str>(&[], true);
    assert!(matches!(none, Err(Error::Key { .. })));
}
