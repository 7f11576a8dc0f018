//! Values as Python writes and reads them: a template that prints a list is read back as a list.

use serde_json::{Number, Value};

/// Values inside values.
const DEPTH_MAX: usize = 32;

/// Reads a Python literal, as `ast.literal_eval` does: lists, tuples, dictionaries, texts, numbers,
/// `True`, `False` and `None`. None for anything else.
pub(crate) fn read(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text.trim() };
    let value = reader.value(0)?;
    reader.rest.trim().is_empty().then_some(value)
}

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn take(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        for (open, close) in [("[", "]"), ("(", ")")] {
            if self.take(open) {
                return self.items(close, depth);
            }
        }
        if self.take("{") {
            return self.map(depth);
        }
        self.rest = self.rest.trim_start();
        if self.rest.starts_with(['\'', '"']) {
            return self.string().map(Value::String);
        }
        for (word, value) in
            [("True", Value::Bool(true)), ("False", Value::Bool(false)), ("None", Value::Null)]
        {
            if self.take(word) {
                return Some(value);
            }
        }
        self.number()
    }

    fn items(&mut self, close: &str, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        loop {
            if self.take(close) {
                return Some(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            if !self.take(",") {
                return self.take(close).then_some(Value::Array(items));
            }
        }
    }

    fn map(&mut self, depth: usize) -> Option<Value> {
        let mut map = serde_json::Map::new();
        loop {
            if self.take("}") {
                return Some(Value::Object(map));
            }
            let Value::String(key) = self.value(depth + 1)? else { return None };
            if !self.take(":") {
                return None;
            }
            map.insert(key, self.value(depth + 1)?);
            if !self.take(",") {
                return self.take("}").then_some(Value::Object(map));
            }
        }
    }

    fn number(&mut self) -> Option<Value> {
        let is_of_number = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
        let end = self.rest.find(|c| !is_of_number(c)).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        let value = match number.parse::<i64>() {
            Ok(whole) => Value::from(whole),
            Err(_) => Value::Number(Number::from_f64(number.parse().ok()?)?),
        };
        self.rest = rest;
        Some(value)
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let mut chars = self.rest[1..].char_indices();
        let mut text = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => text.push(escaped(&mut chars)?),
                '\n' => return None,
                c if c == quote => {
                    self.rest = &self.rest[1 + at + 1..];
                    return Some(text);
                }
                c => text.push(c),
            }
        }
        None
    }
}

/// The character that an escape stands for.
fn escaped(chars: &mut std::str::CharIndices<'_>) -> Option<char> {
    let (_, c) = chars.next()?;
    let mut code = |n: usize| {
        let digits: String = chars.by_ref().take(n).map(|(_, c)| c).collect();
        char::from_u32(u32::from_str_radix(&digits, 16).ok()?)
    };
    match c {
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        '\\' | '\'' | '"' => Some(c),
        'x' => code(2),
        'u' => code(4),
        'U' => code(8),
        _ => None,
    }
}

/// A text as `repr` writes it.
pub(crate) fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() && u32::from(c) < 0x100 => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::{read, repr};
    use serde_json::json;

    #[test]
    fn literals_are_read_as_python_reads_them() {
        for (text, value) in [
            ("['a', \"it's\", 'b\\n']", json!(["a", "it's", "b\n"])),
            ("(1, -2.5, True, None,)", json!([1, -2.5, true, null])),
            ("[]", json!([])),
            ("{'a': [1]}", json!({"a": [1]})),
            ("'\\u00e9\\x41'", json!("éA")),
            (" 7 ", json!(7)),
        ] {
            assert_eq!(read(text), Some(value), "{text}");
        }
        for text in ["", "[1", "a", "[a]", "['a' 'b'", "1 2", "'a\nb'", "__import__('os')"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read(&"[".repeat(10_000)), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["", "a", "it's", "\"", "'\"\\", "a\nb\t\r\u{1}é\u{85}"] {
            assert_eq!(read(&repr(text)), Some(json!(text)), "{}", repr(text));
        }
        assert_eq!(repr("it's"), "\"it's\"");
        assert_eq!(repr("'\""), "'\\'\"'");
    }
}
