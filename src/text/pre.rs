//! The pre-tokenizers of byte-level BPE vocabularies: the name in a GGUF, and the definition in a `tokenizer.json`.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::unsupported;
use crate::error::Result;

/// How a byte-level BPE vocabulary cuts a text into words before merging.
#[derive(Debug)]
pub(super) struct Pre {
    /// The names in GGUF files, as llama.cpp knows them; the first is the one that is written.
    names: &'static [&'static str],
    /// The cuts, one after the other.
    steps: &'static [Step],
    /// How published documents say much the same.
    published: &'static [&'static [Step]],
    /// A word that is a token as a whole is taken without looking at the merges.
    pub ignore_merges: bool,
    /// llama.cpp adds BOS for this kind when the file does not say.
    pub adds_bos: bool,
    /// Whether a text is brought into NFC. llama.cpp leaves that out; texts that are not in NFC, which are rare, tokenize
    /// there as they never did in training.
    nfc: bool,
    /// Whether a word may hold spaces between letters.
    pub joins_words: bool,
}

/// A cut.
#[derive(Debug)]
enum Step {
    /// What matches stands alone.
    Split(&'static str),
    /// Digits stand alone: each, or runs of them.
    Digits(bool),
    /// Runs of punctuation stand alone.
    Punctuation,
    /// GPT-2's words.
    Words,
}

use Step::{Digits, Punctuation, Split, Words};

const PLAIN: Pre = Pre {
    names: &[],
    steps: &[Words],
    published: &[],
    ignore_merges: false,
    adds_bos: false,
    nfc: false,
    joins_words: false,
};

/// GPT-2's words. The last white space before a word is what no alternative takes, and stands alone for that.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA_BPE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words by case, with English endings. llama.cpp tells case apart in ASCII only; the published expression everywhere.
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])*(?:(?=\p{L})[^A-Z])+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])+(?:(?=\p{L})[^A-Z])*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O_PUBLISHED: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with each digit alone.
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI_K2: &str = r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Chinese and Japanese, and the words of DeepSeek V3.
const CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Scripts with case, as DeepSeek's first models list them.
const CASED: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const CASED_MARKS: &str = "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+";
const EAST_ASIAN: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const BLOOM_PUBLISHED: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";

/// Every kind that llama.cpp has, in the order in which messages list them; of two that a document can mean, the first.
static ALL: &[Pre] = &[
    Pre {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "roberta-bpe",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
        ],
        ..PLAIN
    },
    Pre {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        steps: &[Digits(true), Words],
        published: &[&[Split(r"\p{N}"), Words]],
        ..PLAIN
    },
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        steps: &[Split(LLAMA_BPE)],
        ignore_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    Pre {
        names: &["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"],
        steps: &[Split(LLAMA_BPE)],
        ..PLAIN
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2"],
        steps: &[Split(QWEN2)],
        nfc: true,
        ..PLAIN
    },
    Pre {
        names: &["stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"],
        steps: &[Split(QWEN2)],
        ..PLAIN
    },
    Pre {
        names: &["qwen35"],
        steps: &[Split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        nfc: true,
        ..PLAIN
    },
    Pre {
        names: &["tekken"],
        steps: &[Split(TEKKEN)],
        ignore_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    Pre {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        steps: &[Split(GPT_4O)],
        published: &[&[Split(GPT_4O_PUBLISHED)]],
        ..PLAIN
    },
    Pre {
        names: &["granite-embed-multi-97m"],
        steps: &[Split(
            r"[^\r\n\p{L}\p{N}]?(?:(?=[\p{L}\p{M}])[^a-z])*(?:(?=[\p{L}\p{M}])[^A-Z])+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?(?:(?=[\p{L}\p{M}])[^a-z])+(?:(?=[\p{L}\p{M}])[^A-Z])*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        ignore_merges: true,
        ..PLAIN
    },
    Pre {
        names: &["tiny_aya", "cohere2moe"],
        steps: &[Split(r"\d{1,3}(?=(?:\d{3})*\b)"), Split(GPT_4O_PUBLISHED)],
        ..PLAIN
    },
    Pre {
        names: &["youtu"],
        steps: &[
            Split(
                "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-\u{303f}︰-\u{fe4f}]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+",
            ),
            Split(YOUTU),
        ],
        ignore_merges: true,
        ..PLAIN
    },
    Pre {
        names: &["deepseek-llm"],
        steps: &[
            Split("[\r\n]"),
            Split(CASED),
            Split(CASED_MARKS),
            Split(r"\s+$"),
            Split(EAST_ASIAN),
            Split(r"\p{N}+"),
        ],
        published: &[&[
            Split("[\r\n]"),
            Split(CASED),
            Split(CASED_MARKS),
            Split(r"\s+$"),
            Split(EAST_ASIAN),
            Digits(true),
        ]],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-coder"],
        steps: &[
            Split("[\r\n]"),
            Split(r"\s?\p{L}+"),
            Split(r"\s?\p{P}+"),
            Split(EAST_ASIAN),
            Split(r"\p{N}"),
        ],
        published: &[&[
            Split("[\r\n]"),
            Split(r"\s?\p{L}+"),
            Split(r"\s?\p{P}+"),
            Split(EAST_ASIAN),
            Digits(true),
        ]],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        steps: &[Split(r"\p{N}{1,3}"), Split(CJK), Split(DEEPSEEK_V3)],
        ..PLAIN
    },
    Pre {
        names: &["spark2_5"],
        steps: &[
            Split(r"\p{N}{1,3}"),
            Split(CJK),
            Split(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##,
            ),
            Split(r"\p{N}"),
        ],
        ..PLAIN
    },
    Pre {
        // Digits in threes from the right, the scripts of East Asia, and DeepSeek's words.
        names: &["afmoe"],
        steps: &[
            Split(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"),
            Split(
                "[一-\u{9fff}㐀-\u{4dbf}\u{f900}-\u{faff}\u{3040}-ゟ゠-ヿ･-ﾟ⼀-\u{2fdf}เ-\u{e7f}\u{e80}-\u{eff}ក-\u{17ff}က-႟ꩠ-ꩿꧠ-\u{a9ff}가-\u{d7af}ᄀ-ᇿ]+",
            ),
            Split(DEEPSEEK_V3),
        ],
        ..PLAIN
    },
    Pre {
        names: &["falcon"],
        steps: &[Split(r"[\p{P}\$\+<=>\^~\|`]+"), Split(WORDS), Split("[0-9][0-9][0-9]")],
        published: &[&[Punctuation, Words, Digits(false), Split("[0-9][0-9][0-9]")]],
        ..PLAIN
    },
    Pre {
        names: &["bloom", "poro-chat", "gpt3-finnish"],
        steps: &[Split(BLOOM)],
        published: &[&[Split(BLOOM_PUBLISHED)]],
        ..PLAIN
    },
    Pre {
        names: &["viking"],
        steps: &[Split(BLOOM), Split(r"\p{N}")],
        published: &[&[Split(BLOOM_PUBLISHED), Digits(true)]],
        ..PLAIN
    },
    Pre {
        names: &["chameleon"],
        steps: &[
            Split("<sentinel:[0-9]+>"),
            Split("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
            Split("([\t\n]|    |  )"),
            Split(r"\p{N}"),
            Split(r"[\p{P}!-/:-@\[-`{-~]"),
            Split(WORDS),
        ],
        adds_bos: true,
        ..PLAIN
    },
    Pre {
        names: &["jais-2"],
        steps: &[Split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        )],
        ..PLAIN
    },
    Pre { names: &["kimi-k2"], steps: &[Split(KIMI_K2)], ..PLAIN },
    Pre {
        names: &["superbpe"],
        steps: &[Split(r"\p{N}+"), Split(r"(?=(\d{3})+(?!\d))")],
        joins_words: true,
        ..PLAIN
    },
    Pre {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        steps: &[Split(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        )],
        published: &[&[Split(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        )]],
        ..PLAIN
    },
    Pre {
        names: &["seed-coder"],
        steps: &[Split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        ..PLAIN
    },
    Pre {
        names: &["ufakzeka"],
        steps: &[Split(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        ..PLAIN
    },
    Pre { names: &["laguna"], steps: &[Split(r"[^\n]+|[\n]+"), Split(QWEN2)], ..PLAIN },
    Pre {
        names: &["exaone-moe"],
        steps: &[Split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )],
        joins_words: true,
        ..PLAIN
    },
    Pre {
        names: &["minicpm5"],
        steps: &[
            Split(r"\p{N}{1,3}"),
            Split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ],
        ignore_merges: true,
        ..PLAIN
    },
    // llama.cpp's own fallback, which no published tokenizer uses.
    Pre {
        names: &["default", ""],
        steps: &[
            Split(r"[\p{P}\$\+<=>\^~\|]+"),
            Split(WORDS),
            Split(r"\p{N}+"),
            Split("[0-9][0-9][0-9]"),
        ],
        ..PLAIN
    },
];

impl Pre {
    /// The kind that `tokenizer.ggml.pre` names. llama.cpp takes a missing key for `default`, and so does this.
    pub fn from_name(path: &Path, name: Option<&str>) -> Result<&'static Pre> {
        let name = name.unwrap_or_default();
        ALL.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
            let known: Vec<_> = ALL
                .iter()
                .flat_map(|pre| pre.names)
                .copied()
                .filter(|name| !name.is_empty())
                .collect();
            unsupported(
                path,
                format!("tokenizer.ggml.pre `{}`", super::one_line(name)),
                match name {
                    "whitespace" => "its vocabulary (of Jina's Chinese embedding model) has no tokens for bytes, so what it does not spell would be lost".into(),
                    _ => format!("known pre-tokenizers are {}", known.join(", ")),
                },
            )
        })
    }

    /// The name that a GGUF uses.
    pub fn name(&self) -> &'static str {
        self.names[0]
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub fn definition(&self) -> Json {
        definition(self.steps)
    }

    /// The `normalizer` of a `tokenizer.json`.
    pub fn normalizer(&self) -> Json {
        if self.nfc { json!({"type": "NFC"}) } else { Json::Null }
    }

    /// The kinds that cut as a `pre_tokenizer` does.
    fn alike(pre_tokenizer: &Json) -> impl Iterator<Item = &'static Pre> {
        let cutting = simplify(pre_tokenizer);
        let same = move |steps: &[Step]| simplify(&definition(steps)) == cutting;
        ALL.iter()
            .filter(move |pre| same(pre.steps) || pre.published.iter().any(|steps| same(steps)))
    }

    /// A kind that cuts as a `pre_tokenizer` does, whatever else it does.
    pub fn of_cuts(pre_tokenizer: &Json) -> Option<&'static Pre> {
        Pre::alike(pre_tokenizer).next()
    }

    /// The kind of a `tokenizer.json`, or why it has none.
    pub fn recognise(document: &Json) -> Result<&'static Pre, String> {
        let alike: Vec<&Pre> = Pre::alike(&document["pre_tokenizer"]).collect();
        if alike.is_empty() {
            return Err("its pre_tokenizer is none of those that GGUF names".into());
        }
        let normalizer = simplify(&document["normalizer"]);
        let ignores = document["model"]["ignore_merges"].as_bool().unwrap_or(false);
        let kind = alike
            .iter()
            .find(|pre| simplify(&pre.normalizer()) == normalizer && pre.ignore_merges == ignores);
        kind.copied().ok_or_else(|| {
            let names: Vec<_> = alike.iter().map(|pre| pre.name()).collect();
            format!(
                "it cuts as {}, but with another normalizer or ignore_merges",
                names.join(" or ")
            )
        })
    }
}

fn definition(steps: &[Step]) -> Json {
    let mut list: Vec<Json> = steps
        .iter()
        .map(|step| match step {
            Split(regex) => json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
            Digits(each) => json!({"type": "Digits", "individual_digits": each}),
            Punctuation => json!({"type": "Punctuation", "behavior": "Contiguous"}),
            Words => byte_level(true),
        })
        .collect();
    if !steps.iter().any(|step| matches!(step, Words)) {
        list.push(byte_level(false));
    }
    match list.len() {
        1 => list.remove(0),
        _ => json!({"type": "Sequence", "pretokenizers": list}),
    }
}

fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// The steps of a definition as a flat list, without what changes no token id: a sequence of one equals its element,
/// and `trim_offsets` only moves offsets.
pub(super) fn simplify(definition: &Json) -> Vec<Json> {
    let kind = definition["type"].as_str();
    if kind == Some("Sequence") {
        let steps = definition
            .get("pretokenizers")
            .or(definition.get("normalizers"))
            .and_then(Json::as_array);
        return steps.into_iter().flatten().flat_map(simplify).collect();
    }
    let Some(fields) = definition.as_object() else {
        return Vec::new();
    };
    let mut fields = fields.clone();
    if kind == Some("ByteLevel") {
        fields.remove("trim_offsets");
        fields.entry("use_regex").or_insert(Json::Bool(true));
    }
    vec![Json::Object(fields)]
}
