//! Questions with choices of their own.

use super::super::source::Source;
use super::super::task::{Choice, Item, Record, wrong};
use super::{doc, each, with_docs};
use crate::error::Result;

fn texts(texts: &[String]) -> Vec<Choice> {
    texts.iter().map(Choice::new).collect()
}

fn letters(count: usize) -> impl Iterator<Item = char> {
    ('A'..='Z').take(count)
}

pub fn is_mmlu_table(source: &Source) -> bool {
    let rows = source.rows().unwrap_or_default();
    let is =
        |row: &[String]| row.len() == 6 && ["A", "B", "C", "D", "answer"].contains(&row[5].trim());
    !rows.is_empty() && rows.iter().take(3).all(|(_, row)| is(row))
}

/// The question with its choices by letter. The choices to score are the letters.
fn by_letter(subject: &str, question: &str, choices: &[String], answer: usize) -> Item {
    let subject = subject.replace('_', " ");
    let mut query = question.trim().to_string();
    for (letter, choice) in letters(choices.len()).zip(choices) {
        query.push_str(&format!("\n{letter}. {choice}"));
    }
    query.push_str("\nAnswer:");
    let about = if subject.is_empty() { String::new() } else { format!(" about {subject}") };
    Item {
        front: format!("The following are multiple choice questions (with answers){about}.\n\n"),
        query,
        choices: letters(choices.len()).map(|letter| Choice::new(letter.to_string())).collect(),
        answer,
        group: (!subject.is_empty()).then_some(subject),
        ..Item::default()
    }
}

pub fn mmlu(source: &Source) -> Result<Vec<Item>> {
    if source.is_json() {
        return each(source, |record| {
            let choices = record.texts("choices")?;
            if choices.len() > 26 {
                return Err(record.wrong("at most 26 choices", choices.len().to_string()));
            }
            // Hugging Face has a number, some copies a letter.
            let answer = match record.value("answer")?.as_str() {
                Some(letter) if letter.trim().parse::<i64>().is_err() => {
                    record.letter("answer", letter, choices.len())?
                }
                _ => record.place("answer", 0, choices.len())?,
            };
            let subject = match record.has(&["subject"]) {
                true => record.text("subject")?,
                false => "",
            };
            Ok(by_letter(subject, record.some_text("question")?, &choices, answer))
        });
    }
    // abstract_algebra_test.csv
    let stem = source.path.file_stem().unwrap_or_default().to_string_lossy();
    let subject =
        ["_test", "_dev", "_val"].iter().find_map(|end| stem.strip_suffix(end)).unwrap_or_default();
    let mut items = Vec::new();
    for (index, (line, row)) in source.rows()?.into_iter().enumerate() {
        if row.len() != 6 {
            let expected = "6 columns: question, four choices, answer";
            return Err(wrong(&source.path, line, expected, row.len().to_string()));
        }
        if index == 0 && row[5].trim() == "answer" {
            continue;
        }
        let answer = match row[5].trim() {
            "A" => 0,
            "B" => 1,
            "C" => 2,
            "D" => 3,
            other => {
                return Err(wrong(&source.path, line, "an answer from A to D", other));
            }
        };
        let doc = doc([
            ("question", row[0].as_str().into()),
            ("subject", subject.into()),
            ("choices", row[1..5].into()),
            ("answer", answer.into()),
        ]);
        items.push(Item { doc, ..by_letter(subject, &row[0], &row[1..5], answer) });
    }
    Ok(items)
}

pub fn hellaswag(record: &Record<'_>) -> Result<Item> {
    let endings = record.texts("endings")?;
    let context = if record.has(&["ctx_a", "ctx_b"]) {
        format!("{} {}", record.text("ctx_a")?, capitalized(record.text("ctx_b")?))
    } else {
        record.some_text("ctx")?.to_string()
    };
    let query = match record.has(&["activity_label"]) {
        true => format!("{}: {context}", record.text("activity_label")?),
        false => context,
    };
    let endings: Vec<String> = endings.iter().map(|ending| without_brackets(ending)).collect();
    Ok(Item {
        query: without_brackets(&query),
        answer: record.place("label", 0, endings.len())?,
        choices: texts(&endings),
        ..Item::default()
    })
}

/// As Python's `str.capitalize`: the first character in title case, the others in lower case (a sigma by its place).
fn capitalized(text: &str) -> String {
    let Some(first) = text.chars().next() else {
        return String::new();
    };
    let lower = text.to_lowercase();
    title_case(first).chars().chain(lower.chars().skip(first.to_lowercase().count())).collect()
}

/// A character's title case (Unicode's UnicodeData and SpecialCasing): its upper case, but of letters that are written as two
/// only the first of them.
fn title_case(c: char) -> String {
    let upper: Vec<char> = c.to_uppercase().collect();
    match c {
        // Digraphs, which have a title case of their own; Georgian, which has none.
        '\u{1c4}'..='\u{1c6}' => "\u{1c5}".into(),
        '\u{1c7}'..='\u{1c9}' => "\u{1c8}".into(),
        '\u{1ca}'..='\u{1cc}' => "\u{1cb}".into(),
        '\u{1f1}'..='\u{1f3}' => "\u{1f2}".into(),
        '\u{10d0}'..='\u{10ff}' => c.into(),
        '\u{149}' => upper.into_iter().collect(),
        // Greek with iota below: the letter in upper case that keeps it.
        '\u{1f80}'..='\u{1faf}' => char::from_u32(c as u32 | 8).unwrap_or(c).into(),
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => char::from_u32(c as u32 + 9).unwrap_or(c).into(),
        '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}' => c.into(),
        '\u{1fb2}'..='\u{1fb7}' | '\u{1fc2}'..='\u{1fc7}' | '\u{1ff2}'..='\u{1ff7}' => {
            let below = |c: &char| if *c == '\u{399}' { '\u{345}' } else { *c };
            upper.iter().map(below).collect()
        }
        _ => upper[..1]
            .iter()
            .copied()
            .chain(upper[1..].iter().flat_map(|c| c.to_lowercase()))
            .collect(),
    }
}

/// WikiHow's marks out of HellaSwag's texts: ` [title]` becomes `. `, other brackets go, then double spaces once.
fn without_brackets(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        // A pattern without a newline's match, as Python's `.` has none.
        let close = rest[open..].find(']').filter(|close| !rest[open..open + close].contains('\n'));
        let Some(close) = close else {
            out.push_str(&rest[..=open]);
            rest = &rest[open + 1..];
            continue;
        };
        out.push_str(&rest[..open]);
        rest = &rest[open + close + 1..];
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

/// Labels and texts of `choices`, in either of the two forms.
fn labelled(record: &Record<'_>, list: &serde_json::Value) -> Result<(Vec<String>, Vec<String>)> {
    let expected = "choices with a label and a text each";
    let text = |value: &serde_json::Value| value.as_str().map(str::to_string);
    let pairs: Option<(Vec<String>, Vec<String>)> = match list {
        serde_json::Value::Array(list) => list
            .iter()
            .map(|choice| Some((text(&choice["label"])?, text(&choice["text"])?)))
            .collect(),
        list => {
            let column = |key: &str| list[key].as_array()?.iter().map(text).collect();
            match (column("label"), column("text")) {
                (Some(labels), Some(texts)) => Some((labels, texts)),
                _ => None,
            }
        }
    };
    match pairs {
        Some((labels, texts)) if !texts.is_empty() && labels.len() == texts.len() => {
            Ok((labels, texts))
        }
        _ => Err(record.wrong(expected, list.to_string())),
    }
}

/// The stem, the choices and the right one of ARC's and OpenBookQA's records.
fn keyed(record: &Record<'_>, stem: &str) -> Result<(String, Vec<Choice>, usize)> {
    let question = record.fields.get("question").filter(|value| value.is_object());
    let (stem, list) = match question {
        Some(question) => match question["stem"].as_str() {
            Some(stem) => (stem.to_string(), &question["choices"]),
            None => return Err(record.wrong("a text in `question.stem`", question.to_string())),
        },
        None => (record.some_text(stem)?.to_string(), record.value("choices")?),
    };
    let (labels, choices) = labelled(record, list)?;
    let key = record.text("answerKey")?.trim();
    let answer = labels.iter().position(|label| label == key);
    let answer = answer
        .ok_or_else(|| record.wrong(format!("an `answerKey` out of {}", labels.join(", ")), key))?;
    Ok((stem, texts(&choices), answer))
}

pub fn arc(record: &Record<'_>) -> Result<Item> {
    let (stem, choices, answer) = keyed(record, "question")?;
    Ok(Item { query: format!("Question: {stem}\nAnswer:"), choices, answer, ..Item::default() })
}

pub fn openbookqa(record: &Record<'_>) -> Result<Item> {
    let (query, choices, answer) = keyed(record, "question_stem")?;
    Ok(Item { query, choices, answer, ..Item::default() })
}

pub fn is_logiqa_text(source: &Source) -> bool {
    let lines: Vec<&str> = source.lines().take(7).map(|(_, text)| text.trim()).collect();
    lines.len() == 7
        && ["a", "b", "c", "d"].contains(&lines[0])
        && lines[3].starts_with("A.")
        && lines[6].starts_with("D.")
}

pub fn logiqa(source: &Source) -> Result<Vec<Item>> {
    let question = |context: &str, question: &str, options: &[String], answer| {
        let mut query = format!("Passage: {context}\nQuestion: {question}\nChoices:\n");
        for (letter, option) in letters(options.len()).zip(options) {
            query.push_str(&format!("{letter}. {option}\n"));
        }
        query.push_str("Answer:");
        Item { query, choices: texts(options), answer, ..Item::default() }
    };
    if source.is_json() {
        return with_docs(source.records()?, |_, record| {
            let options = record.texts("options")?;
            let answer = if record.has(&["correct_option"]) {
                record.place("correct_option", 0, options.len())?
            } else {
                let label = record.text("label")?;
                record.letter("label", label, options.len())?
            };
            let asked = if record.has(&["query"]) { "query" } else { "question" };
            Ok(question(record.some_text("context")?, record.text(asked)?, &options, answer))
        });
    }
    source.unicode()?;
    // As lm-evaluation-harness mends the file's missing spaces.
    let mended = |text: &str| text.replace('.', ". ").trim().to_string();
    let lines: Vec<(usize, &str)> = source.lines().collect();
    let mut items = Vec::new();
    for block in lines.chunks(7) {
        let (line, label) = block[0];
        let answer = ["a", "b", "c", "d"].iter().position(|known| *known == label.trim());
        let answer = answer.ok_or_else(|| {
            wrong(&source.path, line, "a letter from a to d that begins a question", label)
        })?;
        if block.len() < 7 {
            let expected = "a letter, a passage, a question and four options";
            let found = format!("{} lines", block.len());
            return Err(wrong(&source.path, line, expected, found));
        }
        let mut options = Vec::new();
        for ((line, option), letter) in block[3..].iter().zip(letters(4)) {
            let text = option.trim().strip_prefix(letter).and_then(|rest| rest.strip_prefix('.'));
            let text = text.ok_or_else(|| {
                wrong(&source.path, *line, format!("an option that begins `{letter}.`"), *option)
            })?;
            options.push(mended(text));
        }
        let (context, asked) = (mended(block[1].1), mended(block[2].1));
        let item = question(&context, &asked, &options, answer);
        let doc = doc([
            ("label", label.trim().into()),
            ("context", context.into()),
            ("question", asked.into()),
            ("options", options.into()),
        ]);
        items.push(Item { doc, ..item });
    }
    Ok(items)
}

pub fn piqa(source: &Source) -> Result<Vec<Item>> {
    let records = source.records()?;
    let stem = source.path.file_stem().unwrap_or_default().to_string_lossy();
    let labels_path = source.path.with_file_name(format!("{stem}-labels.lst"));
    let beside = match records.first() {
        Some(first) if !first.has(&["label"]) => {
            let labels = Source::read(&labels_path)?;
            let lines: Vec<(usize, String)> =
                labels.lines().map(|(line, text)| (line, text.trim().to_string())).collect();
            if lines.len() != records.len() {
                let expected = format!("{} labels, one for each question", records.len());
                return Err(wrong(&labels_path, lines.len(), expected, lines.len().to_string()));
            }
            Some(lines)
        }
        _ => None,
    };
    with_docs(records, |index, record| {
        let answer = match &beside {
            None => record.place("label", 0, 2)?,
            Some(lines) => match lines[index].1.as_str() {
                "0" => 0,
                "1" => 1,
                other => return Err(wrong(&labels_path, lines[index].0, "0 or 1", other)),
            },
        };
        Ok(Item {
            query: format!("Question: {}\nAnswer:", record.some_text("goal")?),
            choices: vec![
                Choice::new(record.some_text("sol1")?),
                Choice::new(record.some_text("sol2")?),
            ],
            answer,
            ..Item::default()
        })
    })
}

/// Partial evaluation (Trinh and Le 2018): each option ends a context, and the text after the blank is scored after each.
pub fn winogrande(record: &Record<'_>) -> Result<Item> {
    let sentence = record.some_text("sentence")?;
    let Some((before, after)) = sentence.split_once('_') else {
        return Err(record.wrong("a sentence with a blank, _", sentence));
    };
    let after = after.trim();
    if after.is_empty() {
        return Err(record.wrong("words behind the blank, which are scored", sentence));
    }
    let answer = record.place("answer", 1, 2)?;
    let choice = |option: &str| {
        Ok(Choice {
            query: Some(format!("{before}{}", record.some_text(option)?)),
            text: after.into(),
        })
    };
    Ok(Item { choices: vec![choice("option1")?, choice("option2")?], answer, ..Item::default() })
}
