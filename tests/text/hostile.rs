//! The tokenizer on input that is broken or hostile, and chat templates, which are both programs and untrusted.

use std::path::Path;

use libtest_mimic::Trial;
use lopper::error::Error;
use lopper::formats::gguf::{Array, Value};
use lopper::text::{HfFiles, Tokenizer};

use super::tokenizer::{fixture, from_document, gguf, list, sentencepiece, text};
pub fn trials() -> Vec<Trial> {
    suite!("text":
        unknown_kinds, hostile_metadata, hostile_documents, unrecognised_pre_tokenizer, chat_templates,
        python_in_templates, broken_templates)
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
    for (key, name) in [("tokenizer.ggml.model", "bert"), ("tokenizer.ggml.pre", "klingon")] {
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
        ("eos_token_id", Some(Value::U32(4))),
        ("eot_token_id", Some(Value::U64(u64::MAX))),
        ("bos_token_id", Some(Value::I32(-1))),
        ("padding_token_id", Some(Value::String("0".into()))),
        ("add_bos_token", Some(Value::U8(1))),
    ];
    for (key, value) in bad {
        let changed = with(&good, &format!("{pre}{key}"), value.clone());
        assert!(matches!(gguf(&changed), Err(Error::Key { .. })), "{key} {value:?}");
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

fn unrecognised_pre_tokenizer() {
    let mut document = fixture("llama-bpe")["tokenizer"].clone();
    document["model"]["ignore_merges"] = false.into();
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
        ("{{ messages[0].nothing is defined }}{{ tools is none }}", "FalseTrue"),
    ] {
        assert_eq!(render(template, &[("user", "hi")]).unwrap(), expected, "{template}");
    }
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
