//! Seeded changes of bytes, and of the structure of JSON. A number is a case: the same one makes the same input everywhere.

use serde_json::{Value as Json, json};

/// A generator of numbers (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `count`, or 0.
    pub fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Numbers at the edges of their types.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    31,
    32,
    63,
    127,
    128,
    255,
    256,
    1 << 15,
    0xffff,
    1 << 16,
    1 << 24,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    1 << 36,
    1 << 53,
    0x7fff_ffff_ffff_ffff,
    1 << 63,
    u64::MAX,
    u64::MAX - 7,
];

/// One to eight changes, most of them in the first `head` bytes, where files say what they are.
pub fn bytes(random: &mut Random, base: &[u8], head: usize) -> Vec<u8> {
    let mut out = base.to_vec();
    for _ in 0..=random.below(8) {
        let reach = if random.once_in(8) { out.len() } else { head.min(out.len()) };
        let at = random.below(reach);
        match random.below(9) {
            0 if at < out.len() => out[at] ^= 1 << random.below(8),
            1 if at < out.len() => out[at] = random.next() as u8,
            2 => out.truncate(at),
            3 => {
                let end = (at + 1 + random.below(16)).min(out.len());
                out.drain(at.min(end)..end);
            }
            4 => {
                let end = (at + 1 + random.below(64)).min(out.len());
                let part = out[at.min(end)..end].to_vec();
                let to = random.below(reach + 1).min(out.len());
                out.splice(to..to, part);
            }
            5 => {
                let text = *random.pick(&[
                    "\0",
                    "\"",
                    "{",
                    "[",
                    "}",
                    "-",
                    "e999",
                    "null",
                    "\u{ffff}",
                    "\r\n",
                    "9999999999",
                ]);
                let at = at.min(out.len());
                out.splice(at..at, text.bytes());
            }
            _ => {
                let edge = random.pick(EDGES).to_le_bytes();
                let size = 1 << random.below(4);
                let end = (at + size).min(out.len());
                let at = at.min(end);
                out[at..end].copy_from_slice(&edge[..end - at]);
            }
        }
    }
    out
}

/// A document with one to six of its values replaced, left out, moved or doubled. `parts`: values of its own kind.
pub fn document(random: &mut Random, base: &Json, parts: &[Json]) -> Json {
    let mut out = base.clone();
    for _ in 0..=random.below(6) {
        let new = match random.below(3) {
            0 if !parts.is_empty() => random.pick(parts).clone(),
            1 => value(random),
            _ => some_value(random, base).clone(),
        };
        let leave_out = random.once_in(5);
        change(random, &mut out, new, leave_out);
    }
    out
}

fn value(random: &mut Random) -> Json {
    let texts = [
        "", " ", "a", "\u{301}", "\0", "(", "\\b", "x*", "(?=a)", "(a+)+$", "/////w==", "▁", "Ġ",
        "é", "../x",
    ];
    match random.below(8) {
        0 => Json::Null,
        1 => json!(random.once_in(2)),
        2 | 3 => json!(random.pick(EDGES)),
        4 => json!(-1),
        5 => json!(*random.pick(&[0.5, -0.0, 1e308, 5e-324, -3.7])),
        6 => json!(random.pick(&texts)),
        _ => json!(random.pick(&texts).repeat(1 + random.below(400))),
    }
}

/// Any value within a document.
fn some_value<'a>(random: &mut Random, json: &'a Json) -> &'a Json {
    let inner: Vec<&Json> = match json {
        Json::Array(list) => list.iter().collect(),
        Json::Object(map) => map.values().collect(),
        _ => Vec::new(),
    };
    if inner.is_empty() || random.once_in(4) {
        return json;
    }
    let next = inner[random.below(inner.len())];
    some_value(random, next)
}

fn change(random: &mut Random, json: &mut Json, new: Json, leave_out: bool) {
    let stop = random.once_in(4);
    match json {
        Json::Array(list) if !list.is_empty() && !stop => {
            let at = random.below(list.len());
            match leave_out {
                true => drop(list.remove(at)),
                false if random.once_in(6) => list.insert(at, new),
                false => change(random, &mut list[at], new, leave_out),
            }
        }
        Json::Object(map) if !map.is_empty() && !stop => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = random.pick(&keys);
            match leave_out {
                true => drop(map.remove(key)),
                false => change(random, &mut map[key], new, leave_out),
            }
        }
        _ => *json = new,
    }
}
