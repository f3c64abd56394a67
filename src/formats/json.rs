//! JSON as model folders have it: what Python's `json` writes, which is more than the standard allows.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A document as Python reads it: `NaN`, `Infinity` and numbers beyond an f64 are taken, as null, for nothing here means
/// them; of equal keys the last counts; a byte-order mark is no text.
pub fn lenient(bytes: &[u8]) -> serde_json::Result<Value> {
    let bytes = without_mark(bytes);
    let plain = serde_json::from_slice(bytes);
    plain.or_else(|error| match finite(bytes) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(finite) => serde_json::from_slice(&finite).map_err(|_| error),
    })
}

/// A document whose readers may disagree on what it says if a key is there twice: that is refused, at any depth.
pub fn strict(bytes: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice::<Distinct>(without_mark(bytes)).map(|document| document.0)
}

fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The text with null in place of numbers that are not finite; borrowed if there are none.
fn finite(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Option<Vec<u8>> = None;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'.');
        let length = match rest[0] {
            b'"' => string_length(rest),
            _ => rest.iter().position(|b| !word(b)).unwrap_or(rest.len()).max(1),
        };
        let token = &rest[..length];
        let number =
            std::str::from_utf8(token).ok().filter(|text| !text.starts_with(['+', 'i', 'n']));
        let infinite =
            number.and_then(|text| text.parse::<f64>().ok()).is_some_and(|n| !n.is_finite());
        if infinite && out.is_none() {
            out = Some(bytes[..at].to_vec());
        }
        if let Some(out) = &mut out {
            out.extend_from_slice(if infinite { b"null" } else { token });
        }
        at += length;
    }
    out.map_or(Cow::Borrowed(bytes), Cow::Owned)
}

/// Bytes of the string that `text` begins with, quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// A value without equal keys.
struct Distinct(Value);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DistinctVisitor).map(Distinct)
    }
}

struct DistinctVisitor;

impl<'de> Visitor<'de> for DistinctVisitor {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Distinct(value)) = seq.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Distinct(value))) = map.next_entry::<String, Distinct>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} twice in one object")));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
