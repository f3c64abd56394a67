//! The Python that chat templates lean on: methods of strings and mappings, `json.dumps`, `strftime`.

use minijinja::value::{Kwargs, Value, ValueKind};
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
        "find" => find(text, argument(args, 0)?).into(),
        "count" => text.matches(argument(args, 0)?).count().into(),
        "replace" => {
            let (from, to) = (argument(args, 0)?, argument(args, 1)?);
            match times(args.get(2))? {
                Some(limit) => text.replacen(from, to, limit).into(),
                None => text.replace(from, to).into(),
            }
        }
        "split" => split(text, first, times(args.get(1))?)?,
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

/// The position in characters, -1 where there is none.
fn find(text: &str, part: &str) -> i64 {
    text.find(part).and_then(|at| i64::try_from(text[..at].chars().count()).ok()).unwrap_or(-1)
}

fn split(text: &str, separator: Option<&Value>, limit: Option<usize>) -> Result<Value, Error> {
    let Some(separator) = separator else {
        let Some(limit) = limit else {
            return Ok(text.split_whitespace().map(Value::from).collect());
        };
        let mut parts = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let end = rest.find(char::is_whitespace).filter(|_| parts.len() < limit);
            let (part, tail) = rest.split_at(end.unwrap_or(rest.len()));
            parts.push(Value::from(part));
            rest = tail.trim_start();
        }
        return Ok(parts.into());
    };
    let separator = separator
        .as_str()
        .filter(|text| !text.is_empty())
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "expected a separator"))?;
    let pieces = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    Ok(text.splitn(pieces, separator).map(Value::from).collect())
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

/// `json.dumps(value, ensure_ascii=False)`, as transformers defines this filter: the one of Jinja escapes HTML.
pub(super) fn to_json(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Accepted and without effect: keys keep their order and text is not escaped.
    let _: Option<Value> = kwargs.get("ensure_ascii")?;
    let _: Option<Value> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let mut out = String::new();
    write_json(&value, indent.map(|width| width.min(16)), 0, &mut out)?;
    Ok(out)
}

/// Deeper values are refused: this recurses.
const MAX_JSON_DEPTH: usize = 64;

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    if depth > MAX_JSON_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "value too deep for tojson"));
    }
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => out.push_str("null"),
        ValueKind::Bool | ValueKind::Number => out.push_str(&value.to_string().to_lowercase()),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Vec::new();
            for item in value.try_iter()? {
                let mut text = String::new();
                write_json(&item, indent, depth + 1, &mut text)?;
                items.push(text);
            }
            write_block(('[', ']'), &items, indent, depth, out);
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                let mut text = quoted(&key);
                text.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, &mut text)?;
                items.push(text);
            }
            write_block(('{', '}'), &items, indent, depth, out);
        }
        _ => out.push_str(&quoted(value)),
    }
    Ok(())
}

fn quoted(value: &Value) -> String {
    serde_json::Value::String(value.to_string()).to_string()
}

fn write_block(
    (open, close): (char, char),
    items: &[String],
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) {
    out.push(open);
    let line = |depth: usize| indent.map(|width| format!("\n{}", " ".repeat(width * depth)));
    let between = if indent.is_some() { "," } else { ", " };
    for (at, item) in items.iter().enumerate() {
        out.push_str(if at == 0 { "" } else { between });
        out.push_str(&line(depth + 1).unwrap_or_default());
        out.push_str(item);
    }
    if !items.is_empty() {
        out.push_str(&line(depth).unwrap_or_default());
    }
    out.push(close);
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
