//! One pass over one audit line: is it one JSON object, and where are the members that the chain
//! needs? Nothing is allocated for the values, so that a log is read at the speed of its hash.
//!
//! The grammar is RFC 8259, with three limits of ours: nesting of at most [`DEPTH_MAX`], no key
//! twice at the top level, and no text after the object.

use std::borrow::Cow;

/// Deepest nesting of a line's payload.
pub(crate) const DEPTH_MAX: usize = 64;

/// What the chain needs of a line. Strings are as written between the quotes, escapes included,
/// which is exact for what a hash or a hex tag can be.
#[derive(Debug, Default)]
pub(crate) struct LineFacts<'a> {
    pub(crate) timestamp: Option<&'a str>,
    pub(crate) run_id: Option<&'a str>,
    pub(crate) event: Option<&'a str>,
    pub(crate) prev_hash: Option<&'a str>,
    /// The tag and, when it is the last member in our byte form, the length of the line before
    /// `, "_hmac": "…"}`: the signed message is that much of the line and a `}`.
    pub(crate) hmac: Option<(&'a str, Option<usize>)>,
}

/// Why a line is not an audit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineProblem {
    NotUtf8,
    NotJson,
    NotObject,
    TooDeep,
    DuplicateKey,
}

/// Reads the facts of `line` (without its newline).
pub(crate) fn scan(line: &[u8]) -> Result<LineFacts<'_>, LineProblem> {
    let text = std::str::from_utf8(line).map_err(|_| LineProblem::NotUtf8)?;
    let mut scanner = Scanner { text, bytes: line, at: 0 };
    scanner.space();
    if scanner.peek() != Some(b'{') {
        scanner.value(1)?;
        return Err(LineProblem::NotObject);
    }
    let mut facts = LineFacts::default();
    let mut keys = Vec::with_capacity(16);
    scanner.members(1, |scanner, member_start, key| {
        let value = scanner.at;
        scanner.value(2)?;
        let string = || scanner.text[value..scanner.at].strip_prefix('"')?.strip_suffix('"');
        match key {
            "timestamp" => facts.timestamp = string(),
            "run_id" => facts.run_id = string(),
            "event" => facts.event = string(),
            "prev_hash" => facts.prev_hash = string(),
            "_hmac" => {
                facts.hmac = string().map(|tag| (tag, own_form(line, member_start, tag)));
            }
            _ => {}
        }
        keys.push(unescaped(key)?);
        Ok(())
    })?;
    scanner.space();
    if scanner.at != line.len() {
        return Err(LineProblem::NotJson);
    }
    if has_duplicates(&mut keys) {
        return Err(LineProblem::DuplicateKey);
    }
    Ok(facts)
}

/// Where the signed message ends, if the tag stands in the line as the writer puts it.
fn own_form(line: &[u8], member_start: usize, tag: &str) -> Option<usize> {
    let cut = member_start.checked_sub(2)?;
    let suffix = format!(", \"_hmac\": \"{tag}\"}}");
    (&line[cut..] == suffix.as_bytes()).then_some(cut)
}

fn unescaped(key: &str) -> Result<Cow<'_, str>, LineProblem> {
    if !key.contains('\\') {
        return Ok(Cow::Borrowed(key));
    }
    let text = serde_json::from_str(&format!("\"{key}\"")).map_err(|_| LineProblem::NotJson)?;
    Ok(Cow::Owned(text))
}

fn has_duplicates(keys: &mut [Cow<'_, str>]) -> bool {
    if keys.len() <= 32 {
        return keys.iter().enumerate().any(|(i, key)| keys[..i].contains(key));
    }
    keys.sort_unstable();
    keys.windows(2).any(|pair| pair[0] == pair[1])
}

/// How many bytes stand before the first quote, backslash or control character; `None` if there is
/// none. Eight bytes at a time: most of a log is inside strings.
fn plain_len(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    const QUOTES: u64 = u64::from_ne_bytes([b'"'; 8]);
    const BACKSLASHES: u64 = u64::from_ne_bytes([b'\\'; 8]);
    let is_special = |&b: &u8| b == b'"' || b == b'\\' || b < 0x20;
    let (words, rest) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let x = u64::from_ne_bytes(*word);
        // The classic test for a zero byte (Mycroft 1987) and its form for a byte below a bound;
        // a false alarm is possible above a true one only, and the exact search below sorts it out.
        let zero_byte = |v: u64| v.wrapping_sub(ONES) & !v & HIGH;
        let control = x.wrapping_sub(ONES * 0x20) & !x & HIGH;
        if zero_byte(x ^ QUOTES) | zero_byte(x ^ BACKSLASHES) | control != 0
            && let Some(at) = word.iter().position(is_special)
        {
            return Some(i * 8 + at);
        }
    }
    rest.iter().position(is_special).map(|at| words.len() * 8 + at)
}

struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, literal: &[u8]) -> Result<(), LineProblem> {
        if self.bytes[self.at..].starts_with(literal) {
            self.at += literal.len();
            return Ok(());
        }
        Err(LineProblem::NotJson)
    }

    fn value(&mut self, depth: usize) -> Result<(), LineProblem> {
        match self.peek() {
            Some(b'"') => self.string().map(|_| ()),
            Some(b'{') => self.members(depth, |scanner, _, _| scanner.value(depth + 1)),
            Some(b'[') => self.items(depth),
            Some(b't') => self.expect(b"true"),
            Some(b'f') => self.expect(b"false"),
            Some(b'n') => self.expect(b"null"),
            _ => self.number(),
        }
    }

    /// An object; `each` is called with the start of the member and its key, and must consume the
    /// value.
    fn members(
        &mut self,
        depth: usize,
        mut each: impl FnMut(&mut Self, usize, &'a str) -> Result<(), LineProblem>,
    ) -> Result<(), LineProblem> {
        if depth > DEPTH_MAX {
            return Err(LineProblem::TooDeep);
        }
        self.at += 1;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let member_start = self.at;
            let key = self.string()?;
            self.space();
            self.expect(b":")?;
            self.space();
            each(self, member_start, key)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(LineProblem::NotJson),
            }
            self.space();
        }
    }

    fn items(&mut self, depth: usize) -> Result<(), LineProblem> {
        if depth > DEPTH_MAX {
            return Err(LineProblem::TooDeep);
        }
        self.at += 1;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(LineProblem::NotJson),
            }
            self.space();
        }
    }

    /// A string; returns what stands between the quotes.
    fn string(&mut self) -> Result<&'a str, LineProblem> {
        if self.peek() != Some(b'"') {
            return Err(LineProblem::NotJson);
        }
        let start = self.at + 1;
        self.at = start;
        loop {
            let rest = &self.bytes[self.at..];
            let plain = plain_len(rest).ok_or(LineProblem::NotJson)?;
            self.at += plain;
            match rest[plain] {
                b'"' => {
                    self.at += 1;
                    return Ok(&self.text[start..self.at - 1]);
                }
                b'\\' => self.escape()?,
                _ => return Err(LineProblem::NotJson),
            }
        }
    }

    fn escape(&mut self) -> Result<(), LineProblem> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                let digits = self.bytes.get(self.at + 2..self.at + 6);
                if !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
                    return Err(LineProblem::NotJson);
                }
                self.at += 6;
            }
            _ => return Err(LineProblem::NotJson),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), LineProblem> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), LineProblem> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { Err(LineProblem::NotJson) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{LineProblem, scan};

    #[test]
    fn the_facts_of_a_line_are_found() {
        let tag = "ab".repeat(32);
        let line = format!(
            r#"{{"timestamp": "t", "run_id": "fg-1", "event": "e", "prev_hash": "genesis", "x": [{{"prev_hash": "no"}}, 1.5e-3, null], "_hmac": "{tag}"}}"#
        );
        let facts = scan(line.as_bytes()).unwrap();
        assert_eq!(facts.run_id, Some("fg-1"));
        assert_eq!(facts.event, Some("e"));
        assert_eq!(facts.prev_hash, Some("genesis"));
        let (found, cut) = facts.hmac.unwrap();
        assert_eq!(found, tag);
        assert!(line[..cut.unwrap()].ends_with("null]"));
        let moved = format!(r#"{{"_hmac": "{tag}", "x": 1}}"#);
        assert_eq!(scan(moved.as_bytes()).unwrap().hmac.unwrap().1, None);
        assert_eq!(scan(br#"{"prev_hash": 1}"#).unwrap().prev_hash, None);
    }

    #[test]
    fn it_accepts_and_refuses_what_serde_json_does() {
        let cases = [
            "{}",
            "{ }",
            "{\"a\":1}",
            "{\"a\":-0.5E+10}",
            "{\"a\":01}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":+1}",
            "{\"a\":NaN}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12g4\"}",
            "{\"a\":\"\t\"}",
            "{\"a\":[1,2,]}",
            "{\"a\":[,]}",
            "{\"a\" 1}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":1}x",
            "{",
            "{\"a\":tru}",
            "{\"a\":true}",
            "{\"a\":[]}",
            "{\"a\":-}",
            "{\"a\":1e}",
            "{\"a\":\"",
            "",
            "{\"a\":\"\\u00e9\\n\"}",
            " {\"a\":null} ",
            "{\"a\":{\"b\":[{}]}}",
            "{\"a\":1 \"b\":2}",
        ];
        for case in cases {
            let serde = serde_json::from_str::<serde_json::Value>(case).is_ok();
            assert_eq!(scan(case.as_bytes()).is_ok(), serde, "{case}");
        }
        assert_eq!(cases.len(), 30);
    }

    #[test]
    fn the_end_of_a_string_is_found_as_byte_by_byte() {
        // Every byte value at every place of a word and its neighbours, after all kinds of bytes.
        for filler in [b'a', 0x7f, 0x80, 0xff, b'!', b'#', b']', b'['] {
            for at in 0..20 {
                for value in 0..=255_u8 {
                    let mut bytes = [filler; 20];
                    bytes[at] = value;
                    let special = |&b: &u8| b == b'"' || b == b'\\' || b < 0x20;
                    let expected = bytes.iter().position(special);
                    assert_eq!(super::plain_len(&bytes), expected, "{filler} {at} {value}");
                }
            }
        }
    }

    #[test]
    fn other_shapes_are_named() {
        let problem = |line: &[u8]| scan(line).unwrap_err();
        assert_eq!(problem(b"[1]"), LineProblem::NotObject);
        assert_eq!(problem(b"{\"a\":1,\"b\":2,\"a\":3}"), LineProblem::DuplicateKey);
        assert_eq!(problem(b"{\"a\":1,\"\\u0061\":3}"), LineProblem::DuplicateKey);
        assert_eq!(problem(b"{\"a\":\"\xff\"}"), LineProblem::NotUtf8);
        let many: Vec<String> = (0..40).map(|i| format!("\"k{}\":0", i % 39)).collect();
        let many = format!("{{{}}}", many.join(","));
        assert_eq!(problem(many.as_bytes()), LineProblem::DuplicateKey);
    }

    #[test]
    fn fault_104_a_line_of_100_000_nested_arrays_is_refused_without_deep_recursion() {
        let deep = "[".repeat(100_000);
        assert_eq!(scan(deep.as_bytes()).unwrap_err(), LineProblem::TooDeep);
        let deep = format!("{{\"a\":{deep}");
        assert_eq!(scan(deep.as_bytes()).unwrap_err(), LineProblem::TooDeep);
    }
}
