//! Mutants of a shader: one small mistake each, of the kinds that people make. A case table that lets one live has a hole.

/// A shader with one mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// The line's number, from 1.
    pub line: usize,
    /// The original text of the place.
    pub before: String,
    /// The mutated text.
    pub after: String,
    /// The whole text.
    pub source: String,
}

/// (token, its replacement). A token comes before those it contains.
const CHANGES: &[(&str, &str)] = &[
    ("workgroupBarrier();", ""),
    ("<= ", "< "),
    (">= ", "> "),
    (" < ", " <= "),
    (" > ", " >= "),
    (" += ", " -= "),
    (" + ", " - "),
    (" - ", " + "),
    (" * ", " + "),
    (" / ", " * "),
    (" && ", " || "),
    (" || ", " && "),
    (" == ", " != "),
    ("max(", "min("),
    ("min(", "max("),
    (" << ", " >> "),
    (" >> ", " << "),
    (" & ", " | "),
    (" | ", " & "),
    ("0u", "1u"),
    ("1u", "2u"),
    ("2u", "3u"),
    ("4u", "5u"),
    ("1.0", "1.5"),
    ("0.0", "0.5"),
];

/// Every mutant of a source, in order. Declarations and comments are left alone: a changed binding does not compile, and
/// a changed parameter struct is found by the shader suite.
pub fn mutants(source: &str) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    let mut within_struct = false;
    for (index, line) in source.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        within_struct = (within_struct || code.starts_with("struct ")) && !code.starts_with('}');
        let declares = [
            "@group",
            "override",
            "#import",
            "alias",
            "@compute",
            "fn main",
            "var<workgroup>",
            "@builtin",
        ];
        if within_struct || declares.iter().any(|start| code.trim_start().starts_with(start)) {
            continue;
        }
        for (find, replace) in CHANGES {
            for (at, _) in code.match_indices(find) {
                // `10u` holds no `0u`: a number is changed whole or not at all.
                let before = code[..at].chars().next_back().unwrap_or(' ');
                if find.starts_with(|c: char| c.is_ascii_digit())
                    && (before.is_alphanumeric() || before == '.')
                {
                    continue;
                }
                let changed = format!("{}{replace}{}", &code[..at], &code[at + find.len()..]);
                let lines = source.lines().enumerate();
                let text: Vec<&str> =
                    lines.map(|(i, l)| if i == index { changed.as_str() } else { l }).collect();
                mutants.push(Mutant {
                    line: index + 1,
                    before: code.trim().into(),
                    after: changed.trim().into(),
                    source: text.join("\n"),
                });
            }
        }
    }
    mutants
}
