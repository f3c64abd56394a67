//! The Python that templates lean on: methods of strings and mappings, `json.dumps`, `strftime`.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

/// Methods that Jinja templates call as Python would let them; all others are an error.
pub(super) fn method(
    _state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), name, args),
        ValueKind::Map => map_method(value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let first = args.first().filter(|arg| !arg.is_none());
    let set: Vec<char> = first.and_then(Value::as_str).unwrap_or("").chars().collect();
    // Without an argument Python strips white space, with one it strips any of its characters.
    let strips = |c: char| {
        if first.is_none() { c.is_whitespace() } else { set.contains(&c) }
    };
    Ok(match name {
        "strip" => text.trim_matches(strips).into(),
        "lstrip" => text.trim_start_matches(strips).into(),
        "rstrip" => text.trim_end_matches(strips).into(),
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "title" => title(text).into(),
        "capitalize" => capitalize(text).into(),
        "isdigit" => (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into(),
        "isspace" => (!text.is_empty() && text.chars().all(char::is_whitespace)).into(),
        "startswith" => any_affix(args, |affix| text.starts_with(affix))?.into(),
        "endswith" => any_affix(args, |affix| text.ends_with(affix))?.into(),
        "swapcase" => swap_case(text).into(),
        "casefold" => text.to_lowercase().into(),
        "isalpha" => (!text.is_empty() && text.chars().all(char::is_alphabetic)).into(),
        "isalnum" => (!text.is_empty() && text.chars().all(char::is_alphanumeric)).into(),
        "isnumeric" | "isdecimal" => {
            (!text.is_empty() && text.chars().all(char::is_numeric)).into()
        }
        "isupper" => {
            (text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)).into()
        }
        "islower" => {
            (text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)).into()
        }
        "find" | "index" => found(name, text, text.find(argument(args, 0)?))?,
        "rfind" | "rindex" => found(name, text, text.rfind(argument(args, 0)?))?,
        "partition" | "rpartition" => partition(text, argument(args, 0)?, name == "rpartition")?,
        "zfill" => zero_fill(text, times(args.first())?.unwrap_or(0))?.into(),
        "ljust" | "rjust" | "center" => {
            let fill = args.get(1).and_then(Value::as_str).and_then(|fill| fill.chars().next());
            justify(text, times(args.first())?.unwrap_or(0), fill.unwrap_or(' '), name)?.into()
        }
        "count" => text.matches(argument(args, 0)?).count().into(),
        "replace" => {
            let (from, to) = (argument(args, 0)?, argument(args, 1)?);
            match times(args.get(2))? {
                Some(limit) => text.replacen(from, to, limit).into(),
                None => text.replace(from, to).into(),
            }
        }
        "split" | "rsplit" => {
            let (args, named): (&[Value], Kwargs) = from_args(args)?;
            let given = |at: usize, key: &str| {
                Ok::<_, Error>(match args.get(at) {
                    Some(arg) => Some(arg.clone()),
                    None => named.get::<Option<Value>>(key)?,
                })
            };
            let separator = given(0, "sep")?.filter(|arg| !arg.is_none());
            split(
                text,
                separator.as_ref(),
                times(given(1, "maxsplit")?.as_ref())?,
                name == "rsplit",
            )?
        }
        "splitlines" => text.lines().map(Value::from).collect(),
        "join" => {
            let items = args.first().ok_or(Error::from(ErrorKind::MissingArgument))?;
            let items: Vec<String> = items.try_iter()?.map(|item| item.to_string()).collect();
            items.join(text).into()
        }
        "removeprefix" => text.strip_prefix(argument(args, 0)?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(argument(args, 0)?).unwrap_or(text).into(),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn map_method(map: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let keys = map.try_iter()?;
    match name {
        "keys" => Ok(keys.collect()),
        "values" => {
            keys.map(|key| map.get_item(&key)).collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        "items" => {
            let pair = |key: Value| Ok(Value::from(vec![key.clone(), map.get_item(&key)?]));
            keys.map(pair).collect::<Result<Vec<_>, Error>>().map(Value::from)
        }
        "get" => {
            let key = args.first().ok_or(Error::from(ErrorKind::MissingArgument))?;
            let found = map.get_item(key)?;
            let default = args.get(1).cloned().unwrap_or(Value::from(()));
            Ok(if found.is_undefined() { default } else { found })
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn argument(args: &[Value], at: usize) -> Result<&str, Error> {
    let arg = args.get(at).ok_or(Error::from(ErrorKind::MissingArgument))?;
    arg.as_str()
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "expected a string argument"))
}

/// A count argument; absent or negative means without limit.
fn times(arg: Option<&Value>) -> Result<Option<usize>, Error> {
    let Some(arg) = arg.filter(|arg| !arg.is_none()) else {
        return Ok(None);
    };
    let count = i64::try_from(arg.clone())?;
    Ok(usize::try_from(count).ok())
}

/// `startswith` and `endswith` take one affix or a tuple of them.
fn any_affix(args: &[Value], test: impl Fn(&str) -> bool) -> Result<bool, Error> {
    let list = args.first().ok_or(Error::from(ErrorKind::MissingArgument))?;
    if let Some(affix) = list.as_str() {
        return Ok(test(affix));
    }
    Ok(list.try_iter()?.any(|affix| affix.as_str().is_some_and(&test)))
}

/// The position in characters of a place in bytes; without one -1, or an error of the methods that are called `index`.
fn found(name: &str, text: &str, at: Option<usize>) -> Result<Value, Error> {
    match at {
        Some(at) => Ok(text[..at].chars().count().into()),
        None if name.ends_with("index") => {
            Err(Error::new(ErrorKind::InvalidOperation, "substring not found"))
        }
        None => Ok(Value::from(-1)),
    }
}

fn separator(text: &str) -> Result<&str, Error> {
    match text {
        "" => Err(Error::new(ErrorKind::InvalidOperation, "expected a separator")),
        text => Ok(text),
    }
}

fn split(
    text: &str,
    by: Option<&Value>,
    limit: Option<usize>,
    from_the_right: bool,
) -> Result<Value, Error> {
    let pieces = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    let Some(by) = by else {
        return Ok(split_at_spaces(text, pieces, from_the_right)
            .into_iter()
            .map(Value::from)
            .collect());
    };
    let wrong = || Error::new(ErrorKind::InvalidOperation, "expected a separator");
    let by = separator(by.as_str().ok_or_else(wrong)?)?;
    if from_the_right {
        let mut parts: Vec<&str> = text.rsplitn(pieces, by).collect();
        parts.reverse();
        return Ok(parts.into_iter().map(Value::from).collect());
    }
    Ok(text.splitn(pieces, by).map(Value::from).collect())
}

/// Words; the last piece, or from the right the first, has the rest of the text with the white space at its outer end.
fn split_at_spaces(text: &str, pieces: usize, from_the_right: bool) -> Vec<&str> {
    let inner = |text: &'_ str| match from_the_right {
        false => text.len() - text.trim_start().len()..text.len(),
        true => 0..text.trim_end().len(),
    };
    let (mut parts, mut rest) = (Vec::new(), &text[inner(text)]);
    while !rest.is_empty() {
        let cut = match from_the_right {
            false => rest.find(char::is_whitespace).map(|at| rest.split_at(at)),
            true => rest.char_indices().rfind(|(_, c)| c.is_whitespace()).map(|(at, c)| {
                let (head, part) = rest.split_at(at + c.len_utf8());
                (part, head)
            }),
        };
        let (part, left) = cut.filter(|_| parts.len() + 1 < pieces).unwrap_or((rest, ""));
        parts.push(part);
        rest = &left[inner(left)];
    }
    if from_the_right {
        parts.reverse();
    }
    parts
}

fn partition(text: &str, by: &str, from_the_right: bool) -> Result<Value, Error> {
    let by = separator(by)?;
    let cut = if from_the_right { text.rsplit_once(by) } else { text.split_once(by) };
    let parts = match (cut, from_the_right) {
        (Some((head, tail)), _) => [head, by, tail],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    Ok(Value::from_object(Tuple::from(parts.map(Value::from))))
}

/// Longer texts are refused before they are made.
fn fitting(width: usize) -> Result<usize, Error> {
    match width {
        0..=0x10_0000 => Ok(width),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "too wide")),
    }
}

fn zero_fill(text: &str, width: usize) -> Result<String, Error> {
    let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    let zeros = fitting(width)?.saturating_sub(text.chars().count());
    Ok(format!("{sign}{}{digits}", "0".repeat(zeros)))
}

fn justify(text: &str, width: usize, fill: char, how: &str) -> Result<String, Error> {
    let room = fitting(width)?.saturating_sub(text.chars().count());
    let left = match how {
        "ljust" => 0,
        "rjust" => room,
        // As Python rounds: the odd blank goes to the left only where the width is odd.
        _ => room / 2 + (room & width & 1),
    };
    let blanks = |count: usize| fill.to_string().repeat(count);
    Ok(blanks(left) + text + &blanks(room - left))
}

/// Jinja's filter `center`.
pub(super) fn center(text: String, width: Option<usize>) -> Result<String, Error> {
    justify(&text, width.unwrap_or(80), ' ', "center")
}

/// Jinja's filter `wordcount`: runs of letters, digits and underscores.
pub(super) fn word_count(text: String) -> usize {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
}

fn swap_case(text: &str) -> String {
    let swap = |c: char| -> Vec<char> {
        if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
    };
    text.chars().flat_map(swap).collect()
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    head + &chars.as_str().to_lowercase()
}

fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

/// How `json.dumps` writes.
struct Style {
    /// Spaces a level; without it everything stands on one line.
    indent: Option<usize>,
    /// Between two items, and between a key and its value.
    separators: (String, String),
    /// Characters beyond ASCII as escapes.
    ascii: bool,
    sort_keys: bool,
}

/// `json.dumps(value, ensure_ascii=False)`, as transformers defines this filter: the one of Jinja escapes HTML.
pub(super) fn to_json(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let given: Option<Value> = kwargs.get("separators")?;
    let given = match given.filter(|given| !given.is_none()) {
        None => None,
        Some(pair) => {
            Some((pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()))
        }
    };
    let between = if indent.is_some() { "," } else { ", " };
    let style = Style {
        indent: indent.map(|width| width.min(16)),
        separators: given.unwrap_or((between.into(), ": ".into())),
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(&value, 0, &mut out)?;
    Ok(out)
}

/// Deeper values are refused: this recurses.
const MAX_JSON_DEPTH: usize = 64;

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_JSON_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "value too deep for tojson"));
        }
        match value.kind() {
            ValueKind::None | ValueKind::Undefined => out.push_str("null"),
            ValueKind::Bool | ValueKind::Number => out.push_str(&value.to_string().to_lowercase()),
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                for (at, item) in value.try_iter()?.enumerate() {
                    self.before(at, depth + 1, out);
                    self.write(&item, depth + 1, out)?;
                }
                self.close('[', ']', depth, out);
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                out.push('{');
                for (at, key) in keys.iter().enumerate() {
                    self.before(at, depth + 1, out);
                    self.quote(key, out);
                    out.push_str(&self.separators.1);
                    self.write(&value.get_item(key)?, depth + 1, out)?;
                }
                self.close('{', '}', depth, out);
            }
            _ => self.quote(value, out),
        }
        Ok(())
    }

    fn quote(&self, value: &Value, out: &mut String) {
        let text = serde_json::Value::String(value.to_string()).to_string();
        if !self.ascii {
            return out.push_str(&text);
        }
        for unit in text.encode_utf16() {
            match u8::try_from(unit).ok().filter(u8::is_ascii) {
                Some(byte) => out.push(char::from(byte)),
                None => out.push_str(&format!("\\u{unit:04x}")),
            }
        }
    }

    /// What stands in front of an item.
    fn before(&self, at: usize, depth: usize, out: &mut String) {
        if at > 0 {
            out.push_str(&self.separators.0);
        }
        self.line(depth, out);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(width) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }

    fn close(&self, open: char, end: char, depth: usize, out: &mut String) {
        if !out.ends_with(open) {
            self.line(depth, out);
        }
        out.push(end);
    }
}

/// A template without the marks that transformers puts around what the assistant says (`{% generation %}`): they are blocks
/// of a scope here, for they change no text.
pub(super) fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(at) = rest.find(if raw { "{%" } else { "{" }) {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let length = match tag.as_bytes().get(1) {
            Some(b'#') if !raw => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'%') => tag_length(tag, "%}"),
            Some(b'{') if !raw => tag_length(tag, "}}"),
            _ => 1,
        };
        let (tag, left) = tag.split_at(length);
        let inner = tag.strip_prefix("{%").and_then(|inner| inner.strip_suffix("%}")).unwrap_or("");
        let word = inner.trim_matches(['-', '+']).trim();
        match word {
            "generation" | "endgeneration" if !raw => {
                let scope = if word == "generation" { "with" } else { "endwith" };
                out.push_str(&tag.replacen(word, scope, 1));
            }
            _ => out.push_str(tag),
        }
        match word {
            "raw" => raw = true,
            "endraw" => raw = false,
            _ => {}
        }
        rest = left;
    }
    out + rest
}

/// Bytes up to the end of a tag, which does not end inside a string.
fn tag_length(tag: &str, end: &str) -> usize {
    let mut quote = None;
    let mut chars = tag.char_indices().skip(2);
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, _) if tag[at..].starts_with(end) => return at + end.len(),
            (None, '"' | '\'') => quote = Some(c),
            (Some(_), '\\') => drop(chars.next()),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    tag.len()
}

/// `strftime` of a fixed moment, Friday 26 July 2024, 00:00.
pub(super) fn strftime_now(format: String) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // `%-d` is `%d` without leading zeros.
        let bare = directive == Some('-');
        if bare {
            directive = chars.next();
        }
        let text = match directive {
            Some('d') => "26",
            Some('m') => "07",
            Some('b' | 'h') => "Jul",
            Some('B') => "July",
            Some('Y') => "2024",
            Some('y') => "24",
            Some('a') => "Fri",
            Some('A') => "Friday",
            Some('j') => "208",
            Some('I') => "12",
            Some('H' | 'M' | 'S') => "00",
            Some('p') => "AM",
            Some('F') => "2024-07-26",
            Some('T' | 'X') => "00:00:00",
            Some('x' | 'D') => "07/26/24",
            Some('Z') => "UTC",
            Some('z') => "+0000",
            Some('%') => "%",
            _ => "",
        };
        out.push_str(match (bare, text) {
            (true, "00") => "0",
            (true, text) => text.strip_prefix('0').unwrap_or(text),
            (false, text) => text,
        });
    }
    out
}
