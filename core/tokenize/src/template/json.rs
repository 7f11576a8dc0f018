//! Values of JSON and of the template engine, and `tojson` as Python's `json.dumps` writes it.

use minijinja::value::{Serde, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// A JSON value for the template engine; key order is kept.
pub(super) fn to_value(json: &serde_json::Value) -> Value {
    Value::from(Serde(json))
}

/// How `tojson` writes.
pub(super) struct Style {
    pub indent: Option<usize>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
    pub ensure_ascii: bool,
}

/// Values nested deeper than this are refused.
const MAX_DEPTH: usize = 100;

/// Writes values as `json.dumps` does, and pays for each with the template's fuel before it is written: a list
/// may be lazy and longer than any memory.
pub(super) struct Dump<'a> {
    pub out: String,
    pub style: &'a Style,
    pub state: &'a State<'a, 'a>,
}

impl Dump<'_> {
    pub(super) fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "value is nested too deep for tojson",
            ));
        }
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => dump_number(&mut self.out, value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.items(value.try_iter()?, depth, ('[', ']'), |dump, item| {
                    dump.value(item, depth + 1)
                })?;
            }
            ValueKind::Map => self.map(value, depth)?,
            kind => {
                let message = format!("object of type {kind} cannot be written as JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let write = |dump: &mut Self, key: &Value| {
            dump.string(&key.to_string())?;
            dump.out.push_str(&dump.style.key_separator);
            dump.value(&value.get_item(key)?, depth + 1)
        };
        if !self.style.sort_keys {
            return self.items(value.try_iter()?, depth, ('{', '}'), write);
        }
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        keys.sort_by_key(ToString::to_string);
        self.items(keys.into_iter(), depth, ('{', '}'), write)
    }

    fn items(
        &mut self,
        items: impl Iterator<Item = Value>,
        depth: usize,
        brackets: (char, char),
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(brackets.0);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                self.out.push_str(&self.style.item_separator);
            }
            is_empty = false;
            new_line(&mut self.out, self.style, depth + 1);
            write(self, &item)?;
        }
        if !is_empty {
            new_line(&mut self.out, self.style, depth);
        }
        self.out.push(brackets.1);
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(text.len() as u64 / 64)?;
        dump_string(&mut self.out, text, self.style.ensure_ascii);
        Ok(())
    }
}

fn new_line(out: &mut String, style: &Style, depth: usize) {
    if let Some(indent) = style.indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent * depth));
    }
}

fn dump_number(out: &mut String, value: &Value) {
    if value.is_integer() {
        out.push_str(&value.to_string());
        return;
    }
    let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    out.push_str(&python_float(number));
}

/// A float as Python's `repr` writes it: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn python_float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let magnitude = x.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let scientific = format!("{x:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

fn dump_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{0}'..='\u{1f}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            '\u{7f}'.. if ensure_ascii => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::python_float;

    #[test]
    fn floats_are_written_as_python_does() {
        // By Python 3.12's repr.
        for (x, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (123_456_789.125, "123456789.125"),
            (-0.0, "-0.0"),
            (1e22, "1e+22"),
            (0.0001, "0.0001"),
            (9.999e-5, "9.999e-05"),
            (1e15, "1000000000000000.0"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(python_float(x), text);
        }
    }
}
